"""Running the system's tools."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError


def run(*argv: str | Path) -> str:
    """Run a tool and return its standard output; LabError with what it said if it fails."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    if done.returncode:
        command = " ".join(str(word) for word in argv)
        output = (done.stderr or done.stdout).strip()
        raise LabError(f"`{command}` failed with exit code {done.returncode}:\n{output}")
    return done.stdout


def say(message: str) -> None:
    """Tell the person what is being done, at once even into a pipe."""
    print(message, flush=True)  # noqa: T201


def ssh_options(key: Path) -> Sequence[str]:
    """Options for ssh to a disposable host, whose host key is worth nothing."""
    return (
        *("-i", str(key), "-l", "root", "-F", "none"),
        *("-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"),
        # A host that reboots may not say goodbye; 30 s is more than a busy one needs to answer.
        *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6"),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    )
