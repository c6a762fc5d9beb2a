"""One load of the model, measured: `python -m vistrald.trial` gets a Trial as JSON, prints a Speed.

A process of its own, so that its memory is free before the next load, and because OpenMP reads its
environment once.
"""

import ctypes
import os
import sys
import time
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict

from vistrald.engine import llama
from vistrald.engine.llama import Context, Entry
from vistrald.settings import EngineSection

SIZES = (1, 2, 3, 4, 6, 8, 16)  # tokens in a step: users together, or one with guesses
PREFILL_TOKENS = 64  # enough that reading the weights takes little of the time
DEPTH_SECONDS = 10.0  # spent on filling the cache before steps are measured
DEEPEST = 1024  # tokens
STEP_SECONDS = 0.5  # a size is repeated until then
MOST_REPEATS = 9
SLOT = 0
PR_SET_THP_DISABLE = 41  # prctl.h
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Trial(BaseModel):
    model_config = ConfigDict(frozen=True)

    model: Path
    engine: EngineSection
    threads: int
    huge_pages: bool = True  # transparent ones, where the host gives them


class Speed(BaseModel):
    """What a trial found: seconds, and tokens a second for prefill."""

    trial: Trial
    backend: str
    load_seconds: float
    prefill: float
    depth: int  # tokens in the cache when steps were measured
    steps: dict[int, float]  # tokens in a step -> seconds


def measure(trial: Trial) -> Speed:
    """Loads the model and measures. Raises LlamaError, OSError."""
    if not trial.huge_pages:
        _refuse_huge_pages()
    began = time.monotonic()
    backend = llama.load_backend()
    model = llama.Model(trial.model, trial.engine)
    context = llama.Context(model, trial.engine, trial.threads)
    _decode(context, 0, 1, outputs=1)  # allocates, and brings the weights into memory
    load_seconds = time.monotonic() - began
    prefill = PREFILL_TOKENS / _decode(context, 0, PREFILL_TOKENS, outputs=1)
    depth = PREFILL_TOKENS
    room = min(DEEPEST, context.context_tokens - max(SIZES), int(DEPTH_SECONDS * prefill))
    while depth + PREFILL_TOKENS <= room:
        _decode(context, depth, PREFILL_TOKENS, outputs=1)
        depth += PREFILL_TOKENS
    sizes = [size for size in SIZES if size <= context.rows]
    steps = {size: _step(context, depth, size) for size in sizes}
    return Speed(
        trial=trial,
        backend=backend,
        load_seconds=load_seconds,
        prefill=prefill,
        depth=depth,
        steps=steps,
    )


def gives_huge_pages() -> bool:
    """Whether this host backs any program's memory by transparent huge pages, unasked."""
    return HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text()


def _refuse_huge_pages() -> None:
    """For this process: what it would be like on a host that gives none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"PR_SET_THP_DISABLE: {os.strerror(ctypes.get_errno())}")


def _step(context: Context, depth: int, size: int) -> float:
    times: list[float] = []
    while len(times) < MOST_REPEATS and sum(times) < STEP_SECONDS:
        times.append(_decode(context, depth, size, outputs=size))
        context.remove(SLOT, depth, -1)
    return median(times)


def _decode(context: Context, start: int, tokens: int, *, outputs: int) -> float:
    """Seconds of one batch at positions from `start` on; its last tokens ask for logits."""
    entries = [Entry(at % 1000, start + at, SLOT, at >= tokens - outputs) for at in range(tokens)]
    if start == 0:
        context.forget(SLOT)
    began = time.monotonic()
    context.decode(entries)
    return time.monotonic() - began


if __name__ == "__main__":
    print(measure(Trial.model_validate_json(sys.stdin.read())).model_dump_json())  # noqa: T201
