"""The machine's speed, measured with the loaded model before the first request.

Deadlines, batch sizes and guesses are decided by it; later batches correct it.
"""

import time
from statistics import median

from vistrald.engine.deadline import UNMEASURED_CHUNK, Rates
from vistrald.engine.llama import Context, Entry

SLOT = 0
ENOUGH_SECONDS = 0.1  # a size is repeated until then: a slow machine's single step is exact enough
MOST_REPEATS = 5
LONGEST_STEP_SECONDS = 3.0  # beyond it, sizes are no more doubled: guesses cannot pay


def measure(context: Context, rates: Rates) -> None:
    """Notes the time of a prefill batch and of decode steps with 1, 2, 4, … tokens.

    All of them: kernels may gain nothing from two tokens and much from eight. Leaves the KV cache
    empty. Raises LlamaError.
    """
    _seconds(context, 1, 1)  # allocates, and brings the weights into memory
    rates.note(UNMEASURED_CHUNK, 0, _seconds(context, UNMEASURED_CHUNK, 1))
    tokens, seconds = 1, 0.0
    while tokens <= context.rows and seconds <= LONGEST_STEP_SECONDS:
        seconds = _repeated(context, tokens)
        rates.note(0, tokens, seconds)
        tokens *= 2


def token_bytes(context: Context) -> int:
    """What each token adds to a sequence's saved state: its keys, values and position.

    Leaves the KV cache empty. Raises LlamaError.
    """
    sizes = []
    for tokens in (1, 2):
        context.decode([Entry(0, at, SLOT, at == tokens - 1) for at in range(tokens)])
        sizes.append(context.state_size(SLOT))
        context.forget(SLOT)
    return sizes[1] - sizes[0]


def _repeated(context: Context, tokens: int) -> float:
    times: list[float] = []
    while len(times) < MOST_REPEATS and sum(times) < ENOUGH_SECONDS:
        times.append(_seconds(context, tokens, tokens))
    return median(times)


def _seconds(context: Context, tokens: int, outputs: int) -> float:
    """Of one batch; the last `outputs` tokens ask for logits."""
    entries = [Entry(0, at, SLOT, at >= tokens - outputs) for at in range(tokens)]
    began = time.monotonic()
    context.decode(entries)
    seconds = time.monotonic() - began
    context.forget(SLOT)
    return seconds
