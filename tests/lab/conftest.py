"""What a lab leaves on the machine, as the tests look for it."""

import os
from pathlib import Path

import pytest

from lab.state import RUN, cache, labs


def _traces() -> set[str]:
    """Everything on the machine of the kinds that labs make: mounts, groups, namespaces, files."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    # `ip netns add` makes this one once for ever.
    found = {f"mount {line.split()[4]}" for line in mounts} - {"mount /run/netns"}
    found |= {f"control group {folder}" for folder, _, _ in os.walk("/sys/fs/cgroup")}
    for home in ("/run/systemd/nspawn/locks", "/run/systemd/nspawn/propagate", "/run/netns"):
        found |= {str(path) for path in Path(home).glob("*")}
    return found | {str(path) for home in (RUN, cache() / "labs") for path in home.glob("*")}


def _processes(lab: str) -> set[str]:
    """The living processes of a lab, as "pid command"."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ")
            groups = (folder / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A dead process that PID 1 has not reaped yet has no command.
        if command and f"vistral-{lab}" in command + groups:
            found.add(f"{folder.name} {command}")
    return found


class Leftovers:
    """What has come to the machine since this was made, and a lab's living processes."""

    def __init__(self) -> None:
        # systemd-nspawn makes these once for ever.
        for name in ("locks", "propagate"):
            Path("/run/systemd/nspawn", name).mkdir(parents=True, exist_ok=True)
        (cache() / "labs").mkdir(parents=True, exist_ok=True)
        self._before = _traces()

    def of(self, lab: str) -> set[str]:
        found = (_traces() - self._before) | _processes(lab)
        # Somebody may have a demo running; a lock's name does not tell whose it is.
        theirs = [f"vistral-{other}" for other in labs() if other != lab]
        theirs += [f"/{other}" for other in labs() if other != lab]
        theirs += ["/locks/"] if theirs else []
        return {trace for trace in found if not any(name in trace for name in theirs)}

    processes = staticmethod(_processes)


@pytest.fixture(scope="module")
def leftovers() -> Leftovers:
    return Leftovers()
