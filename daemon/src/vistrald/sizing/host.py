"""What this host has: cores, instruction sets, memory and how fast it is read."""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from vistrald.cgroup import memory_limit, usable_cores

READ_BYTES = 64 * 2**20  # for each thread: beyond its share of the last cache
REPEATS = 5


@dataclass(frozen=True)
class Host:
    memory: int  # bytes of RAM
    limit: int | None  # bytes of the control group, None: no limit
    cores: int  # usable ones
    flags: frozenset[str]  # of the processor
    bandwidth: float | None  # bytes a second from memory by all cores; None: not measured
    disk_free: int  # bytes, where the model will lie

    @property
    def available(self) -> int:
        """Bytes that a process here can have at most."""
        return min(self.memory, self.limit or self.memory)

    @property
    def repacked_types(self) -> frozenset[str]:
        """Tensor types that libllama repacks here (ggml/src/ggml-cpu/repack.cpp)."""
        types = {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"} if "avx2" in self.flags else set()
        return frozenset(types | ({"Q2_K"} if "avx512f" in self.flags else set()))


def this_host(path: Path = Path("/var/lib"), *, measure: bool = True) -> Host:
    """`path`: where the model will lie; it counts as its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    cores = usable_cores()
    return Host(
        memory=psutil.virtual_memory().total,
        limit=memory_limit(),
        cores=cores,
        flags=_flags(Path("/proc/cpuinfo").read_text()),
        bandwidth=read_bandwidth(cores) if measure else None,
        disk_free=shutil.disk_usage(path).free,
    )


def read_bandwidth(threads: int, each: int = READ_BYTES) -> float:
    """Bytes a second that so many threads read from memory together: the best of a few times.

    Decode reads every weight once for a token; nothing of it is written.
    """
    import numpy as np  # noqa: PLC0415 (the daemon asks for the memory alone)

    arrays = [np.ones(each // 8, dtype=np.float64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def once() -> float:
            began = time.monotonic()
            list(pool.map(np.max, arrays))  # releases the interpreter's lock
            return time.monotonic() - began

        return threads * each / min(once() for _ in range(REPEATS))


def _flags(cpuinfo: str) -> frozenset[str]:
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(line[1].split() if line else ())
