"""A step in a process of its own, bounded in time, memory and the size of each file it writes."""

import contextlib
import os
import resource
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

SAID = 600  # characters of what a failed process said last


class StepError(Exception):
    """Why a step did not come to its end: a kind that reports translate, and the evidence."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Limits:
    """Seconds; bytes of memory, and of each file that is written."""

    seconds: float
    memory: int | None = None
    file_bytes: int | None = None


def run(
    command: list[str],
    limits: Limits,
    *,
    cwd: Path | None = None,
    stdin: str = "",
    kind: str = "failed",
) -> str:
    """What it wrote to standard output. Raises StepError; leaves no process behind.

    Memory is limited by RLIMIT_DATA: pages that cannot be given back, which mapped files and
    address space that is only reserved are not.
    """

    def limit() -> None:
        if limits.memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
        if limits.file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))

    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=cwd,
        start_new_session=True,
        preexec_fn=limit,  # noqa: PLW1509 (this process starts no threads before)
    )
    try:
        out, err = process.communicate(stdin, timeout=limits.seconds)
    except subprocess.TimeoutExpired:
        raise StepError("timeout", f"{limits.seconds:.0f} s: {' '.join(command[-3:])}") from None
    finally:
        # Children of its own too, and on Ctrl+C.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        said = err.strip()[-SAID:] or f"exit status {process.returncode}"
        short = any(word in err for word in ("MemoryError", "bad_alloc", "not enough memory"))
        if limits.memory is not None and (short or process.returncode == -signal.SIGKILL):
            raise StepError("memory", f"{limits.memory / 1e9:.1f} GB: {said}")
        if limits.file_bytes is not None and "File too large" in err:
            raise StepError("download", f"{limits.file_bytes / 1e9:.2f} GB: {said}")
        raise StepError(kind, said)
    return out
