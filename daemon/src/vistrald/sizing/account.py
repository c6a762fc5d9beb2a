"""What serving a model takes of memory, item by item; pure functions of numbers.

The sizes of libllama's buffers follow from its graphs. They were compared with what libllama itself
reserves, over five shapes and fifteen settings (tests/daemon/test_sizing.py repeats a part of it),
and the sums with the measured peak of the daemon (docs/sizing.md).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, Self

from vistrald.settings import EngineSection
from vistrald.sizing.shape import Model, Shape

KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # of an element
KV_PADDING = 256  # libllama rounds the context up to it
FLOAT = 4

# Anonymous memory of the arbiter and the worker with libllama loaded, before any model, and the
# kernel's own for them (measured, llama-cpp-python 0.3.36, Python 3.11).
PROCESS = 77_000_000
TOKEN_BYTES, MERGE_BYTES = 150, 139  # of libllama's vocabulary (measured, 32768 to 262144 tokens)

# For what nobody planned: long request bodies, fragments of the heap. Measured peaks were above the
# prediction by 32 MB and 2.5 % at most (docs/sizing.md).
RESERVE_SHARE, LEAST_RESERVE = 0.01, 32_000_000


@dataclass(frozen=True)
class Use:
    """How the model is served: the settings of the engine that cost memory."""

    context_tokens: int = 4096
    users: int = 4  # parallel_sequences
    kv_type: Literal["f16", "q8_0"] = "f16"
    batch_tokens: int = 512
    draft_tokens: int = 15
    load_mode: str = "none"
    repack: bool = True

    @classmethod
    def of(cls, engine: EngineSection) -> Self:
        return cls(
            context_tokens=engine.context_tokens,
            users=engine.parallel_sequences,
            kv_type=engine.kv_type,
            batch_tokens=engine.batch_tokens,
            draft_tokens=engine.draft_tokens,
            load_mode=engine.load_mode,
            repack=engine.repack,
        )

    @property
    def rows(self) -> int:
        """Of logits in a batch."""
        return self.users + self.draft_tokens


@dataclass(frozen=True)
class Account:
    """Bytes."""

    weights: int
    repacked: int  # copies beside the weights
    kv_cache: int
    compute: int
    output: int
    process: int

    @property
    def peak(self) -> int:
        """What is expected to be measured."""
        return sum(asdict(self).values())

    @property
    def reserve(self) -> int:
        return max(LEAST_RESERVE, int(RESERVE_SHARE * self.peak))

    @property
    def total(self) -> int:
        """What has to be there."""
        return self.peak + self.reserve


def account(
    model: Model, use: Use, repacked_types: frozenset[str], batch: int | None = None
) -> Account:
    """`batch`: tokens of the largest batch that will be computed, if that is below batch_tokens.

    A buffer's pages take memory once they are written, so shorter batches take less of it.
    """
    shape = model.shape
    tokens = min(use.batch_tokens, use.context_tokens, max(batch or use.batch_tokens, use.rows))
    return Account(
        weights=model.weights,
        repacked=_copies(model, use, repacked_types),
        kv_cache=kv_cache(shape, use),
        compute=compute_buffer(shape, use, tokens) + _work_buffer(shape, tokens),
        output=use.rows * shape.vocabulary * FLOAT,
        process=PROCESS + shape.vocabulary * TOKEN_BYTES + shape.merges * MERGE_BYTES,
    )


def kv_cache(shape: Shape, use: Use) -> int:
    """Keys and values of all cells. A model with a sliding window takes less."""
    cells = math.ceil(use.context_tokens / KV_PADDING) * KV_PADDING
    elements = shape.layers * shape.kv_heads * (shape.key_length + shape.value_length)
    return int(cells * elements * KV_BYTES[use.kv_type])


def compute_buffer(shape: Shape, use: Use, tokens: int) -> int:
    """The graph's tensors that are alive together, of a batch of so many tokens.

    The largest moment is in the feed-forward part, or where many rows of logits are computed.
    """
    queries = shape.heads * shape.key_length
    feeding = tokens * (3 * shape.feed_forward + 3 * shape.hidden + queries) * FLOAT
    rows = min(use.rows, tokens)
    answering = rows * (shape.vocabulary + 2 * shape.hidden) * FLOAT
    mask = tokens * math.ceil(use.context_tokens / KV_PADDING) * KV_PADDING * 2  # in f16
    return max(feeding, answering) + mask


def _work_buffer(shape: Shape, tokens: int) -> int:
    """The widest activations once more, quantized to eight bits for the kernels."""
    return int(tokens * max(shape.feed_forward, shape.hidden) * 292 / 256)


def _copies(model: Model, use: Use, repacked_types: frozenset[str]) -> int:
    """Bytes of weights that are in memory twice.

    Without mmap a matrix is repacked as it is read; with it the file's pages stay beside the
    repacked copy. An embedding that is the output matrix too is kept in both forms.
    """
    if not use.repack:
        return 0
    copies = model.tied[1] if model.tied and model.tied[0] in repacked_types else 0
    if use.load_mode == "mmap":
        copies += sum(size for kind, size in model.repackable.items() if kind in repacked_types)
    return copies
