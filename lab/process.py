"""Processes that stay after the command that started them, and are found again to be ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.errors import LabError

_PACKAGE = Path(__file__).parent.parent


def start(record: Path, argv: Sequence[str]) -> None:
    """Start a process in a session of its own: who it is into `record`.pid, output into .log."""
    with record.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(_PACKAGE)},
            cwd="/",  # or it would keep the caller's folder in use
        )
    record.with_suffix(".pid").write_text(f"{process.pid} {_started(process.pid)}\n")
    # Where the starter lives on, as pytest does, no dead child may stay unreaped.
    threading.Thread(target=process.wait, daemon=True).start()


def module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs the `main` of a module of this package."""
    return [sys.executable, "-c", f"from {name} import main; main()", *arguments]


def running(record: Path) -> int | None:
    """Return the pid of the recorded process, or None if it has ended."""
    file = record.with_suffix(".pid")
    if not file.exists() or not file.read_text().strip():
        return None
    pid, _, started = file.read_text().strip().partition(" ")
    # The start time tells it from a later process that was given the same pid.
    return int(pid) if started and _started(int(pid)) == started else None


def stop(record: Path, seconds: float = 10) -> None:
    """End the recorded process by SIGTERM, by SIGKILL after `seconds`, and remove its record."""
    pid = running(record)
    if pid:
        os.kill(pid, signal.SIGTERM)
        if not wait_until(lambda: running(record) is None, seconds):
            os.kill(pid, signal.SIGKILL)
            if not wait_until(lambda: running(record) is None, 5):
                raise LabError(f"process {pid} ({record}.pid) does not end, even by SIGKILL")
    record.with_suffix(".pid").unlink(missing_ok=True)


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Return whether the condition became true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def _started(pid: int) -> str:
    """Return when the process started, in clock ticks since boot; empty if it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return ""
    # The command's name, in parentheses, may hold spaces; after it come state and 18 more fields.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
