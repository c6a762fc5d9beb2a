"""Control groups: one of its own for each host, in every hierarchy the machine has.

A hierarchy is a version 1 controller or the version 2 tree; a machine may have both kinds.
"""

import os
import signal
from pathlib import Path

from lab.errors import LabError
from lab.process import wait_until

# A version 1 cpuset takes no process before it is given cpus, and systemd does not use it.
_UNUSED = "cpuset"


def own() -> dict[str, Path]:
    """Return this process's group in each hierarchy, by the hierarchy's name ("" is version 2)."""
    mounts = _mounts()
    groups = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        # A controller that is known but not mounted has no folder.
        if controllers in mounts and controllers != _UNUSED:
            root, mount = mounts[controllers]
            groups[controllers] = mount / path.removeprefix(root).lstrip("/")
    return groups


def needs_scope(groups: dict[str, Path]) -> bool:
    """Return whether groups must be asked of the machine's systemd, which owns the one tree."""
    return list(groups) == [""] and Path("/run/systemd/system").exists()


def enter(groups: dict[str, Path]) -> None:
    """Make the groups where need be and move this process into them."""
    for group in groups.values():
        group.mkdir(exist_ok=True)
        (group / "cgroup.procs").write_text(str(os.getpid()))


def pids(groups: list[Path]) -> set[int]:
    """Return the processes in the groups and in all groups below them."""
    found: set[int] = set()
    for group in groups:
        for folder, _, _ in os.walk(group):
            try:
                found.update(int(word) for word in Path(folder, "cgroup.procs").read_text().split())
            except OSError:
                continue  # the group went away, or is a threaded one
    return found


def remove(groups: list[Path]) -> None:
    """Kill what runs in the groups and remove them with all below them."""

    def emptied() -> bool:
        alive = pids(groups)
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not alive

    if not wait_until(emptied, 10):
        raise LabError(f"processes {sorted(pids(groups))} do not end, even by SIGKILL")
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                continue  # systemd removes an empty scope's group by itself


def _mounts() -> dict[str, tuple[str, Path]]:
    """Return the root within the hierarchy and the mount point of each mounted hierarchy."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        root, mount = fields.split()[3:5]
        kind, _, options = tail.split()
        if kind == "cgroup2":
            found[""] = (root, Path(mount))
        elif kind == "cgroup":
            names = [word for word in options.split(",") if word not in {"rw", "ro", "xattr"}]
            found[",".join(names)] = (root, Path(mount))
    return found
