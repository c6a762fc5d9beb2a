"""Memory of a server: proportional set size of its processes, file mappings included."""

from __future__ import annotations

import contextlib

import psutil


def used(pid: int) -> int:
    """Bytes of a process and its descendants; pages that several share are counted once."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total
