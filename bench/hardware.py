"""What the processor and its memory can do at most, measured beside what uses them."""

from __future__ import annotations

import time

import numpy as np

from vistrald.sizing import host

READ_BYTES = 512 * 2**20  # for each thread: far beyond any cache
MATRIX = 4096  # rows and columns
REPEATS = 5


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory together: the best of a few times."""
    return host.read_bandwidth(threads, READ_BYTES)


def flops() -> float:
    """Single-precision operations a second of a matrix product on all cores: the best of a few."""
    matrix = np.ones((MATRIX, MATRIX), dtype=np.float32)
    times = []
    for _ in range(REPEATS):
        began = time.monotonic()
        _ = matrix @ matrix  # numpy's BLAS has a thread for each core
        times.append(time.monotonic() - began)
    return 2 * MATRIX**3 / min(times)
