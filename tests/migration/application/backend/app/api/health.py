import os
from app.services import saiga_service as saiga
from app.core.config import settings


def ready():
    service = saiga
    return {
        "loaded": service.is_model_loaded(),
        "file": os.path.exists(settings.SAIGA_MODEL_PATH),
        "threads": os.environ.get("SAIGA_N_THREADS", "4"),
        "raw": os.environ["SAIGA_N_CTX"],
        "stats": saiga.get_stats(),
    }
