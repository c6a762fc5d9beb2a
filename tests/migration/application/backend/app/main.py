from contextlib import asynccontextmanager

from app.core.config import settings
from app.services.saiga_service import (
    SaigaService,
    saiga_service,
)


@asynccontextmanager
async def lifespan(application):
    await saiga_service.ensure_model_loaded_async()
    application.state.llm = saiga_service
    assert isinstance(application.state.llm, SaigaService)
    print(f"Saiga: контекст {settings.SAIGA_N_CTX}")
    yield
