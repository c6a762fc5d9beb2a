"""Saiga Mistral 7B inside the process."""
import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, AsyncGenerator, Dict, List, Optional

from llama_cpp import Llama

from ..core.config import settings

logger = logging.getLogger(__name__)


class SaigaService:
    def __init__(self) -> None:
        self._model: Optional[Llama] = None
        self._executor = ThreadPoolExecutor(max_workers=settings.SAIGA_MAX_CONCURRENCY)
        self._stats = {"total_requests": 0, "successful_requests": 0, "failed_requests": 0}

    def ensure_model_loaded_sync(self) -> None:
        if self._model is None:
            if not os.path.exists(settings.SAIGA_MODEL_PATH):
                raise RuntimeError(f"No model at {settings.SAIGA_MODEL_PATH}")
            self._model = Llama(
                model_path=settings.SAIGA_MODEL_PATH,
                n_ctx=settings.SAIGA_N_CTX,
                n_threads=settings.SAIGA_N_THREADS,
            )

    async def ensure_model_loaded_async(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.ensure_model_loaded_sync)

    def is_model_loaded(self) -> bool:
        return self._model is not None

    def create_legal_prompt(self, question: str, context: Optional[str] = None) -> str:
        return f"<s><system>Ты юрист. {context or ''}</system><user>{question}</user><bot>"

    def generate_response(self, prompt: str, max_tokens: int = 1024, temperature: float = 0.3,
                          top_p: float = 0.8) -> str:
        self.ensure_model_loaded_sync()
        answer = self._model(prompt, max_tokens=max_tokens, stop=settings.SAIGA_STOP_TOKENS)
        return answer["choices"][0]["text"]

    async def generate_response_async(self, prompt: str, max_tokens: int = 1024,
                                      temperature: float = 0.3, top_p: float = 0.8) -> str:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self.generate_response, prompt, max_tokens, temperature, top_p)

    async def stream_response(self, prompt: str, max_tokens: int = 1024, temperature: float = 0.3,
                              top_p: float = 0.8) -> AsyncGenerator[str, None]:
        yield await self.generate_response_async(prompt, max_tokens, temperature, top_p)

    def get_stats(self) -> Dict[str, Any]:
        return dict(self._stats)


saiga_service = SaigaService()
