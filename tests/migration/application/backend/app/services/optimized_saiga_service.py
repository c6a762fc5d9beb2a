"""Оптимизированная копия и вспомогательные функции, которые нужны не только ей."""
import re
from llama_cpp import Llama, LlamaGrammar
from .saiga_service import SaigaService

ARTICLE = re.compile(r"ст(?:атья|\.)\s*(\d+)")


def article_numbers(text):
    """Номера статей в тексте; этим пользуется поиск."""
    return ARTICLE.findall(text)


class OptimizedSaigaService(SaigaService):
    def load(self):
        return Llama(model_path="/opt/models/saiga.gguf", n_batch=512)


optimized_saiga_service = OptimizedSaigaService()
