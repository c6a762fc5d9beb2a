"""How to choose tokens and when to end, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; seed None is random; repeat_penalty 1, others' 0 are off.

    `logit_bias` is pairs of token id and what is added to its logit.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
