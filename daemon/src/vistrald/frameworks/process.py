"""A step in a process of its own, bounded in time, memory and the size of each file it writes."""

import contextlib
import os
import resource
import signal
import subprocess
from pathlib import Path

SAID = 600  # characters of what a failed process said last


class StepFailed(Exception):
    """Why a step did not come to its end: a kind that reports translate, and the evidence."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


def run(
    command: list[str],
    *,
    seconds: float,
    memory: int | None = None,
    file_bytes: int | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    kind: str = "failed",
) -> str:
    """What it wrote to standard output. Raises StepFailed; leaves no process behind.

    Memory is limited by RLIMIT_DATA: pages that cannot be given back, which mapped files and
    address space that is only reserved are not.
    """

    def limit() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

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
        out, err = process.communicate(stdin, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise StepFailed("timeout", f"{seconds:.0f} s: {' '.join(command[-3:])}") from None
    finally:
        # Children of its own too, and on Ctrl+C.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        said = err.strip()[-SAID:] or f"exit status {process.returncode}"
        short = any(word in err for word in ("MemoryError", "bad_alloc", "not enough memory"))
        if memory is not None and (short or process.returncode == -signal.SIGKILL):
            raise StepFailed("memory", f"{memory / 1e9:.1f} GB: {said}")
        raise StepFailed(kind, said)
    return out
