"""Expected rates of a dense model on a host's cores. An estimate: `vistrald tune` measures them.

A token of prefill costs two operations for each weight. A token of decode costs the same at a lower
rate, or the time to read all weights from memory, whichever is longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from vistrald.sizing.host import Host
from vistrald.sizing.shape import Model

# Operations a second of a core, measured with the 24B shape in IQ4_XS on two quiet Zen 3 cores
# (AVX2): prefill 3.9 tokens/s, decode 1.53 tokens/s, two operations for each of 23.57e9 weights.
PREFILL_CORE = 3.9 * 2 * 23.57e9 / 2
DECODE_CORE = 1.53 * 2 * 23.57e9 / 2
WITHOUT_AVX2 = 0.25  # SSE kernels
BANDWIDTH_SHARE = 0.8  # of what plain reading reaches
# Cores differ by clock and instruction sets, virtual ones by their neighbours.
LEAST, MOST = 0.6, 1.6

DISK = 1e9  # bytes a second of a server's NVMe: an assumption
CHUNK_SECONDS = 2.0  # the longest batch of prefill (engine/deadline.py)
FIRST_CHUNK = 32  # tokens of the batch by which the engine measures its speed
ANSWER_SECONDS = 30.0  # within which an answer has to be there
PROMPTS = (50, 200, 500, 1000)  # tokens that are not in the cache


@dataclass(frozen=True)
class Rates:
    """Tokens a second, most likely; the truth lies between LEAST and MOST times as many."""

    prefill: float
    decode: float
    load_seconds: float

    @property
    def largest_batch(self) -> int:
        """Tokens of the largest batch that the engine computes, should it be that fast."""
        return max(FIRST_CHUNK, int(MOST * CHUNK_SECONDS * self.prefill))

    def answer_tokens(self, prompt: int, seconds: float = ANSWER_SECONDS) -> int:
        """Tokens of an answer in so many seconds, after a prompt of so many new tokens."""
        return max(0, int((seconds - prompt / self.prefill) * self.decode))


def expected(model: Model, host: Host) -> Rates:
    kernels = 1.0 if "avx2" in host.flags else WITHOUT_AVX2
    work = 2 * model.parameters / (host.cores * kernels)
    reading = model.weights / (BANDWIDTH_SHARE * host.bandwidth) if host.bandwidth else 0.0
    return Rates(
        prefill=PREFILL_CORE / work,
        decode=1 / max(work / DECODE_CORE, reading),
        load_seconds=model.file_size / DISK,
    )
