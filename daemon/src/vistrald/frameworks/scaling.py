"""From rates of what was tried to rates of the 24B model.

A token's time is taken as proportional to the weights that it is multiplied with. For the small
real model that holds badly where a framework's fixed cost for each operation counts, or the
processor's cache. The wide one, a single layer of exactly the 24B's matrices, has next to none of
that cost and fits no cache; it is believed where it ran. Both together are the estimate's range.
"""

from dataclasses import dataclass

from vistrald.sizing.catalogue import vistral

# Without the wide trial, by how much the small model's estimate may be wrong; 3.3 has been seen.
SMALL_ALONE = 4.0


@dataclass(frozen=True)
class Range:
    """Tokens a second of the 24B model."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Estimate:
    prefill: Range
    decode: Range

    def answer_tokens(self, seconds: float, prompt: int) -> float:
        """Tokens of an answer within so many seconds to a prompt of so many new tokens."""
        return max(0.0, seconds - prompt / self.prefill.likely) * self.decode.likely

    def most_answer_tokens(self, seconds: float, prompt: int) -> float:
        """The same at the upper ends of the ranges."""
        return max(0.0, seconds - prompt / self.prefill.high) * self.decode.high


@dataclass(frozen=True)
class Measured:
    """Tokens a second, and how many weights each of them was multiplied with."""

    prefill: float
    decode: float
    multiplied: int


def estimate(small: Measured, wide: Measured | None) -> Estimate:
    def scaled(rate: str) -> Range:
        first = _scaled(getattr(small, rate), small.multiplied)
        if wide is None:
            return Range(first / SMALL_ALONE, first, first * SMALL_ALONE)
        likely = _scaled(getattr(wide, rate), wide.multiplied)
        return Range(min(first, likely), likely, max(first, likely))

    return Estimate(prefill=scaled("prefill"), decode=scaled("decode"))


def _scaled(rate: float, multiplied: int) -> float:
    return rate * multiplied / vistral().multiplied
