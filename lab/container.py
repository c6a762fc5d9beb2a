"""Host kind 1: a systemd-nspawn container with systemd as PID 1. Boots in about a second."""

import shutil
from pathlib import Path

from lab import cgroup, network, process, rootfs
from lab.state import HostRecord

_NSPAWN = Path("/run/systemd/nspawn")

# Boots in 1 s on two idle cores.
READY_SECONDS = 60


def start(host: HostRecord) -> None:
    """Make what the host needs and begin to boot it; it is not ready yet."""
    stop(host)
    network.make_host(host)
    rootfs.make(host)
    command = process.module("lab.supervisor", host.lab, host.name)
    if cgroup.needs_scope(cgroup.own()):
        scope = ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes"]
        command = [*scope, f"--unit={host.machine}", *command]
    process.start(console(host), command)


def stop(host: HostRecord) -> None:
    """Kill the host and all that is left of an earlier run; its file system stays."""
    process.stop(console(host))
    groups = host.folder / "cgroups"
    if groups.exists():
        cgroup.remove([Path(line) for line in groups.read_text().splitlines()])
        groups.unlink()
    # What systemd-nspawn leaves when it is killed.
    shutil.rmtree(_NSPAWN / "propagate" / host.machine, ignore_errors=True)
    root = host.folder / "root"
    if root.is_mount():
        inode = root.stat()
        (_NSPAWN / "locks" / f"inode-{inode.st_dev}:{inode.st_ino}").unlink(missing_ok=True)


def console(host: HostRecord) -> Path:
    """Return the record of the host's process; its log is the host's console."""
    return host.folder / "console"
