"""The Debian 12 image that every host starts from: built once, kept unpacked in the cache."""

import fcntl
import hashlib
import shutil
import subprocess
import time
from pathlib import Path

from lab import apt
from lab.command import run, say
from lab.errors import LabError
from lab.state import cache

PACKAGES = (
    # What makes it a Debian host that can be administered.
    *("systemd-sysv", "dbus", "libpam-systemd", "libnss-systemd", "openssh-server", "sudo", "cron"),
    *("python3", "python3-apt", "curl", "ca-certificates", "iproute2", "iputils-ping", "procps"),
    *("kmod", "udev", "nftables", "logrotate"),
    # What the daemon's role installs; here already, so that tests do not depend on a mirror.
    *("python3-venv", "libgomp1", "aria2"),
)
# Hosts are read by programs, not by people: 100 MB less.
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/doc/*", "/usr/share/locale/*")
# apt's lock would be held some minutes after boot, just when a playbook wants it.
_TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer")
# A container has no devices of its own to manage, and may not watch the machine's.
DEVICE_UNITS = (
    *("systemd-udevd.service", "systemd-udevd-kernel.socket", "systemd-udevd-control.socket"),
    "systemd-udev-trigger.service",
)


def image() -> Path:
    """Return the root folder of the image, building it first if need be.

    It is read-only by agreement: hosts put an overlay over it.
    """
    images = cache() / "images"
    images.mkdir(parents=True, exist_ok=True)
    sources, settings = apt.sources(), apt.acquire_settings()
    # This file is the recipe, so a changed recipe makes a new image.
    recipe = (Path(__file__).read_text(), sources, settings)
    root = images / hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]
    with (images / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _build(root, sources, settings)
    return root


def _build(root: Path, sources: str, settings: str) -> None:
    say(f"Building the Debian 12 image (once, about a minute) in {root} …")
    start = time.monotonic()
    unfinished = root.with_name(f"{root.name}.unfinished")
    run("rm", "-rf", "--one-file-system", unfinished)
    log = root.with_name(f"{root.name}.log")
    inputs = {"debian.sources": sources, "acquire.conf": settings}
    for name, text in inputs.items():
        (root.parent / name).write_text(text)
    command = [
        # Its mounts must not outlive it, however it ends.
        *("unshare", "--mount"),
        *("mmdebstrap", "--mode=root", "--variant=apt", "--format=directory"),
        # An empty but fresh lists folder would make `apt: update_cache` with a
        # `cache_valid_time` skip the update and then find no package.
        "--skip=cleanup/apt/lists",
        f"--include={','.join(PACKAGES)}",
        f"--aptopt={root.parent / 'acquire.conf'}",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        *(apt.SUITE, str(unfinished), str(root.parent / "debian.sources")),
    ]
    try:
        with log.open("w") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            tail = "\n".join(log.read_text().splitlines()[-15:])
            raise LabError(f"building the image failed; the whole log is {log}, its end:\n{tail}")
        _finish(unfinished, sources)
        unfinished.rename(root)
    finally:
        run("rm", "-rf", "--one-file-system", unfinished)
    say(f"Built the image in {time.monotonic() - start:.0f} s.")


def _finish(root: Path, sources: str) -> None:
    for keyring in apt.keyrings(sources):
        if not (root / keyring.relative_to("/")).exists():
            (root / keyring.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(keyring, root / keyring.relative_to("/"))
    for key in Path("/etc/apt/trusted.gpg.d").iterdir():
        shutil.copy(key, root / "etc/apt/trusted.gpg.d")
    for unit in (*_TIMERS, *DEVICE_UNITS):
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (root / "etc/default/locale").write_text("LANG=C.UTF-8\n")
    # Names resolve by /etc/hosts alone; without a name server a lookup fails at once.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("# No name server: packages come through apt's proxy.\n")
