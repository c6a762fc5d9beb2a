"""What the kernel grants this process: cores and memory, by affinity mask and control groups.

More threads than granted cores collapse llama.cpp's throughput (every layer ends in a barrier), so
the thread count follows both the affinity mask and the CPU quota.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
CURRENT = ("memory.current", "memory.usage_in_bytes")
UNLIMITED_V1 = 2**60  # v1 has no word for "max": it reports the largest multiple of a page


def usable_cores(own_groups: Path = OWN_GROUPS, root: Path = ROOT) -> int:
    """Whole cores by affinity and by the tightest CPU quota up to the root; at least 1."""
    quota = min(_cpu_quotas(own_groups, root), default=math.inf)
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), quota)))


def memory_limit(own_groups: Path = OWN_GROUPS, root: Path = ROOT) -> int | None:
    """The tightest memory limit in bytes up to the root; None where nothing limits."""
    return min((limit for limit, _ in _limited_groups(own_groups, root)), default=None)


def memory_used(own_groups: Path = OWN_GROUPS, root: Path = ROOT) -> int | None:
    """Bytes of the group with the tightest limit, less the file pages that it can give back.

    None where nothing limits.
    """
    limited = list(_limited_groups(own_groups, root))
    if not limited:
        return None
    _, group = min(limited)
    current = next(file for name in CURRENT if (file := group / name).exists())
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    inactive = statistics.get("total_inactive_file") or statistics.get("inactive_file", "0")
    return int(current.read_text()) - int(inactive)


def _cpu_quotas(own_groups: Path, root: Path) -> Iterator[float]:
    for directory in _ancestry(own_groups, root, "cpu"):
        if (file := directory / "cpu.max").exists():
            limit, period = file.read_text().split()
            if limit != "max":
                yield int(limit) / int(period)
        elif (file := directory / "cpu.cfs_quota_us").exists():
            microseconds = int(file.read_text())
            if microseconds > 0:
                yield microseconds / int((directory / "cpu.cfs_period_us").read_text())


def _limited_groups(own_groups: Path, root: Path) -> Iterator[tuple[int, Path]]:
    for directory in _ancestry(own_groups, root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            if (file := directory / name).exists():
                text = file.read_text().strip()
                if text != "max" and int(text) < UNLIMITED_V1:
                    yield int(text), directory


def _ancestry(own_groups: Path, root: Path, controller: str) -> Iterator[Path]:
    """The process's group and its ancestors, in the v2 hierarchy and in v1's for `controller`."""
    lines = own_groups.read_text().splitlines() if own_groups.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        # Inside a container the path may be the host's; the directories that exist then count.
        group = base / path.lstrip("/")
        yield group
        if group != base:
            yield from (parent for parent in group.parents if parent.is_relative_to(base))
