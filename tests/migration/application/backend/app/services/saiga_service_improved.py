import llama_cpp as lc

from app.core.config import settings


class SaigaServiceImproved:
    """Копия сервиса с очередью."""

    def generate_response(self, prompt, max_tokens=1024, temperature=0.3, top_p=0.8):
        return lc.Llama(model_path=settings.SAIGA_MODEL_PATH)(prompt)["choices"][0]["text"]

    def create_legal_prompt(self, question, context=None):
        return question


saiga_service_improved = SaigaServiceImproved()
