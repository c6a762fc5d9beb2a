"""Сервисы приложения."""
from .saiga_service import SaigaService, saiga_service  # основной сервис
from .enhanced_rag_service import enhanced_rag_service

__all__ = [
    "SaigaService",
    "saiga_service",
    "enhanced_rag_service",
]
