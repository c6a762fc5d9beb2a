"""Keeps one container running: makes its control groups and boots it again when it reboots.

Its own process (see process.py), with the arguments LAB HOST.
"""

import os
import subprocess
import sys
from pathlib import Path

from lab import cgroup, network
from lab.process import wait_until
from lab.state import HostRecord, records

_REBOOT = 133  # systemd-nspawn's exit code for it
_ENVIRONMENT = {
    # Its system call filter forbids bpf, without which IPAddressDeny= silently does nothing.
    "SYSTEMD_SECCOMP": "0",
    # The host sets net.* for itself; everything else under /proc/sys is the machine's.
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
    # As on Debian /tmp is on the disk; in memory it would count against the host's limit.
    "SYSTEMD_NSPAWN_TMPFS_TMP": "0",
}


def main() -> None:
    lab, name = sys.argv[1:]
    host = next(record for record in records(lab) if record.name == name)
    groups = cgroup.own()
    if cgroup.needs_scope(groups):
        _record(host, groups)
        _leave_scope_empty(groups[""])
        while (code := _boot_in_scope(host, groups[""])) == _REBOOT:
            pass
    else:
        groups = {kind: group / host.machine for kind, group in groups.items()}
        _record(host, groups)
        cgroup.enter(groups)
        if host.memory is not None:
            (groups["memory"] / "memory.limit_in_bytes").write_text(str(host.memory))
        while (code := _boot(_command(host)).wait()) == _REBOOT:
            pass
    sys.exit(code)


def _record(host: HostRecord, groups: dict[str, Path]) -> None:
    """Note the groups before they are made, so that `down` finds whatever there is."""
    (host.folder / "cgroups").write_text("".join(f"{group}\n" for group in groups.values()))


def _leave_scope_empty(scope: Path) -> None:
    """Let groups below the scope have limits: in version 2 only a group without processes may."""
    cgroup.enter({"": scope / "keeper"})
    controllers = (scope / "cgroup.controllers").read_text().split()
    (scope / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def _boot_in_scope(host: HostRecord, scope: Path) -> int:
    """Boot in a group of its own and return the exit code."""
    group = scope / "host"
    # What the boot before has left: it has limits below it and so takes no process any more.
    cgroup.remove([group])
    group.mkdir()
    enter = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group))
    container = _boot([*enter, *_command(host)])
    if host.memory is not None:
        (group / "memory.max").write_text(str(host.memory))
        # Programs in the host see the group that systemd-nspawn makes, not the one above it.
        seen = group / "payload" / "memory.max"
        if wait_until(seen.exists, 10, pause=0.01):
            seen.write_text(str(host.memory))
    return container.wait()


def _boot(argv: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(argv, env={**os.environ, **_ENVIRONMENT})


def _command(host: HostRecord) -> list[str]:
    """Return the command that boots the container and ends with it."""
    return [
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe"),
        *(f"--machine={host.machine}", f"--hostname={host.name}"),
        f"--directory={host.folder.resolve() / 'root'}",
        f"--network-namespace-path={network.path(host.machine)}",
        *("--link-journal=no", "--resolv-conf=off", "--timezone=off"),
        # Never more: with all capabilities the host could set the machine's clock.
        "--capability=CAP_NET_ADMIN,CAP_IPC_LOCK",
        "--kill-signal=SIGRTMIN+3",
        *(f"--tmpfs={path}:mode=0755,size={size}" for path, size in host.tmpfs.items()),
        "/usr/sbin/host-init",
    ]
