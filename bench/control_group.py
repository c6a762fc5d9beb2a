"""A memory cgroup with a hard limit, as the daemon's unit has one; v1 and v2."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

ROOT = Path("/sys/fs/cgroup")
NAME = "vistral-bench"
LOOK_SECONDS = 0.2
# What the kernel cannot take back: anonymous pages, its own memory for the group, shared memory.
UNRECLAIMABLE_V2 = ("anon", "kernel", "shmem")
UNRECLAIMABLE_V1 = ("total_rss", "total_shmem")


class ControlGroup:
    def __init__(self, folder: Path, *, v2: bool) -> None:
        self.folder = folder
        self._v2 = v2
        self.peak = 0  # bytes that could not be reclaimed, of the moments it was looked at

    def command(self, command: list[str]) -> list[str]:
        """The command, run as a member of the group from its first instruction on."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *command]

    def look(self) -> int:
        """Bytes that the kernel cannot reclaim now."""
        statistics = self._numbers("memory.stat")
        if self._v2:
            used = sum(statistics.get(name, 0) for name in UNRECLAIMABLE_V2)
        else:
            used = sum(statistics.get(name, 0) for name in UNRECLAIMABLE_V1)
            used += int((self.folder / "memory.kmem.usage_in_bytes").read_text())
        self.peak = max(self.peak, used)
        return used

    @property
    def kills(self) -> int:
        """Processes that the kernel killed for the limit's sake."""
        return self._numbers("memory.events" if self._v2 else "memory.oom_control")["oom_kill"]

    def _numbers(self, name: str) -> dict[str, int]:
        lines = (self.folder / name).read_text().splitlines()
        return {key: int(value) for key, value in (line.split() for line in lines)}


@contextmanager
def limited(limit: int) -> Iterator[ControlGroup]:
    """A group of this process with a limit in bytes and no swap; removed at the end.

    Raises click.ClickException if groups cannot be made here.
    """
    v2 = (ROOT / "cgroup.controllers").exists()
    folder = (ROOT if v2 else ROOT / "memory") / f"{NAME}-{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)
        if v2:
            (folder / "memory.max").write_text(str(limit))
            _write_if_there(folder / "memory.swap.max", 0)
        else:
            (folder / "memory.limit_in_bytes").write_text(str(limit))
            _write_if_there(folder / "memory.memsw.limit_in_bytes", limit)
    except OSError as error:
        raise click.ClickException(
            f"{folder}: {error}; run it as root on a host whose cgroups are writable"
        ) from None
    try:
        yield ControlGroup(folder, v2=v2)
    finally:
        _remove(folder)


@contextmanager
def looked_at(group: ControlGroup) -> Iterator[None]:
    """Has the group's memory read all the while."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            group.look()

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _write_if_there(path: Path, value: int) -> None:
    """The kernel may have been built, or booted, without swap accounting."""
    if path.exists():
        path.write_text(str(value))


def _remove(folder: Path) -> None:
    """Once its last process has gone, which may take a moment longer than its end."""
    for _ in range(50):
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)
