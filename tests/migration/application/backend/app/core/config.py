"""Настройки приложения."""
import os
from typing import List, Optional

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file='.env', extra='ignore')

    DATABASE_URL: str = "postgresql://app@localhost/app"
    QDRANT_HOST: str = "localhost"

    # --- Saiga Mistral 7B ---
    SAIGA_MODEL_PATH: str = Field(default=os.path.expanduser("~/llama.cpp/models/saiga_mistral_7b_q4_K.gguf"))
    SAIGA_N_CTX: int = Field(default=8192, ge=512, env="SAIGA_N_CTX")   # контекст
    SAIGA_N_THREADS: int = int(os.getenv("SAIGA_N_THREADS", "8"))
    SAIGA_N_GPU_LAYERS: int = 0
    SAIGA_INFERENCE_TIMEOUT: int = 900  # секунд
    SAIGA_MAX_CONCURRENCY : int = 3
    SAIGA_TOKEN_MARGIN: int = 32
    SAIGA_STOP_TOKENS: List[str] = Field(default_factory=lambda: ["</s>", "<bot>"])
    SAIGA_REPEAT_PENALTY: float = 1.1

    @field_validator('SAIGA_N_CTX')
    @classmethod
    def _context(cls, value: int) -> int:
        return max(value, 512)

    @property
    def answer_tokens(self) -> int:
        return self.SAIGA_N_CTX - self.SAIGA_TOKEN_MARGIN


settings = Settings()
