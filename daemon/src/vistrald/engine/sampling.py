"""How to choose tokens and when to end, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; seed None is random; top_k 0, min_p 0, repeat_penalty 1 are off."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
