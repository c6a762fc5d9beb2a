from pathlib import Path

from ..core.config import settings


class FineTuningService:
    def base_model(self) -> Path:
        return Path(settings.SAIGA_MODEL_PATH)
