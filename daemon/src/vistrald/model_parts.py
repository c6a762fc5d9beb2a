"""All files of a model, be it one or a split GGUF, verified before libllama sees any of them."""

from collections.abc import Callable
from pathlib import Path

from vistrald import model_file
from vistrald.settings import ModelSection


def verify(
    model: ModelSection,
    state_dir: Path,
    progress: Callable[[float], None] = lambda _: None,
) -> bool:
    """True if anything had to be hashed; `progress` gets the fraction of all bytes.

    Raises ModelFileError about the first file that is not the configured one.
    """
    total = sum(size for _, size, _ in model.files)
    done, hashed = 0, False
    for path, size, sha256 in model.files:
        before = done

        def tell(fraction: float, before: int = before, size: int = size) -> None:
            progress((before + fraction * size) / total)

        hashed |= model_file.verify(path, size, sha256, state_dir, tell)
        done += size
    return hashed
