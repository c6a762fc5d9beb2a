"""A host's file system: an overlay over the image, and what makes it this host's own."""

import shutil
from pathlib import Path

from lab.command import run
from lab.errors import LabError
from lab.image import DEVICE_UNITS, image
from lab.network import GATEWAY
from lab.proxy import PORT
from lab.state import HostRecord, folder, records

# Version 1 controllers that systemd limits services by. They come read-only into a container, so
# MemoryMax= would silently do nothing; a plain remount fails with EBUSY.
_HOST_INIT = """\
#!/bin/sh
for controller in memory cpu cpuacct pids blkio devices freezer; do
    if [ -d /sys/fs/cgroup/$controller ]; then
        mount -o remount,bind,rw /sys/fs/cgroup/$controller
    fi
done
exec /lib/systemd/systemd "$@"
"""


def make(host: HostRecord, *layers: Path) -> Path:
    """Mount the host's file system, write its identity if it is new, and return its root.

    `layers` are folders that go over the image, the uppermost first.
    """
    home = host.folder.resolve()
    root = home / "root"
    if root.is_mount():
        return root
    for name in ("upper", "work", "root"):
        (home / name).mkdir(exist_ok=True)
        (home / name).chmod(0o755)  # the upper one's mode is that of the host's /
    lower = ":".join(str(layer) for layer in (*layers, image()))
    options = f"lowerdir={lower},upperdir={home / 'upper'},workdir={home / 'work'}"
    try:
        run("mount", "-t", "overlay", "-o", options, host.machine, root)
    except LabError as error:
        raise LabError(
            f"{error}\nAn overlay needs a real file system such as ext4 or xfs under {home};"
            " name a folder on one by the variable VISTRAL_CACHE"
        ) from error
    # A device of a virtual machine is its own.
    if host.vm:
        for unit in DEVICE_UNITS:
            (root / "etc/systemd/system" / unit).unlink(missing_ok=True)
    if not (root / "root/.ssh/authorized_keys").exists():
        _write_identity(host, root)
    return root


def unmount(host: HostRecord) -> None:
    """Unmount the host's file system; what it wrote stays."""
    root = host.folder.resolve() / "root"
    if root.is_mount():
        run("umount", root)


def _write_identity(host: HostRecord, root: Path) -> None:
    names = "".join(f"{other.address} {other.name}\n" for other in records(host.lab))
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
    (root / "etc/hostname").write_text(f"{host.name}\n")
    (root / "etc/machine-id").write_text("")
    (root / "etc/apt/apt.conf.d/99vistral-lab-proxy").write_text(
        f'Acquire::http::Proxy "http://{GATEWAY}:{PORT}";\n'
        f'Acquire::https::Proxy "http://{GATEWAY}:{PORT}";\n'
    )
    (root / "usr/sbin/host-init").write_text(_HOST_INIT)
    (root / "usr/sbin/host-init").chmod(0o755)
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    # Last, for it tells that the rest is done.
    shutil.copy(folder(host.lab) / "key.pub", root / "root/.ssh/authorized_keys")
