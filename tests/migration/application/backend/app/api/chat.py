from ..services import enhanced_rag_service, saiga_service as llm
from ..services.saiga_service_improved import saiga_service_improved
from ..services.summary_service import first_sentence


async def chat(question: str) -> dict:
    # saiga_service отвечает сам, без поиска
    prompt = llm.create_legal_prompt(question)
    answer = saiga_service_improved.generate_response(prompt)
    return {"title": first_sentence(answer), "answer": answer, "model": "Saiga Mistral 7B"}


async def search(question: str) -> dict:
    return await enhanced_rag_service.search_legal_documents(question)
