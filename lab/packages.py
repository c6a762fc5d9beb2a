"""The Debian packages that the machine needs for making hosts."""

import subprocess

from lab.command import run
from lab.errors import LabError

_NEEDED = ("mmdebstrap", "systemd-container", "iproute2", "openssh-client", "procps")
_NEEDED_FOR_VMS = ("qemu-system-x86", "busybox-static", "cpio", "e2fsprogs", "kmod")


def missing(virtual: bool) -> list[str]:
    """Return the packages that are needed, for virtual machines too, and not installed."""
    needed = (*_NEEDED, *(_NEEDED_FOR_VMS if virtual else ()))
    return [package for package in needed if not _is_installed(package)]


def require(virtual: bool) -> None:
    """Raise LabError if a package is missing."""
    if absent := missing(virtual):
        raise LabError(
            f"Debian packages are missing: {' '.join(absent)}; install them:"
            f" python -m lab packages --install{' --vm' if virtual else ''}"
        )


def install(virtual: bool) -> None:
    """Install the packages that are missing."""
    if absent := missing(virtual):
        run("apt-get", "update")
        run(
            *("env", "DEBIAN_FRONTEND=noninteractive"),
            *("apt-get", "install", "--yes", "--no-install-recommends", *absent),
        )


def _is_installed(package: str) -> bool:
    done = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout == "installed"
