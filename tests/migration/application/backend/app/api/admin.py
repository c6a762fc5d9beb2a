def reload_model(kind: str):
    if kind == "legacy":
        from ..services.legacy.saiga_service import SaigaService
        return SaigaService().get_stats()
    try:
        from app.services.mock_saiga_service import mock_saiga_service as saiga_service
    except ImportError:
        from app.services.saiga_service import saiga_service
    saiga_service.generate_response("Проверка")
    return saiga_service.get_stats()


def versions():
    import llama_cpp  # noqa: F401
    return {}
