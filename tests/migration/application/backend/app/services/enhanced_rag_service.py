"""Поиск по законам и ответ модели."""
import logging
from typing import Any, Dict, Optional

from ..core.config import settings
from .saiga_service import saiga_service
from .optimized_saiga_service import (
    article_numbers,  # нужна для ранжирования
    optimized_saiga_service,
)

logger = logging.getLogger(__name__)


class EnhancedRAGService:
    def __init__(self, llm: Any = None) -> None:
        self.llm = llm or saiga_service
        self.saiga_service = saiga_service     # старое имя поля

    async def search_legal_documents(self, query: str, context: Optional[str] = None) -> Dict[str, Any]:
        articles = article_numbers(query)
        prompt = saiga_service.create_legal_prompt(query, context)
        timeout = getattr(settings, "SAIGA_INFERENCE_TIMEOUT", 900)
        logger.info("Saiga отвечает не дольше %s с", timeout)
        answer = await self.saiga_service.generate_response_async(prompt, max_tokens=512)
        return {"answer": answer, "articles": articles, "fast": optimized_saiga_service is not None}

    def own_prompt(self, question: str) -> str:
        return f"<s><system>Отвечай кратко</system><user>{question}</user><bot>"


enhanced_rag_service = EnhancedRAGService()
