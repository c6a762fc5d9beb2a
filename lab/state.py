"""Where a lab keeps its files, and what it remembers of each host."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.errors import LabError

# The paths that inventories name. Each lab's folder here is a link into the cache: on Debian
# /run may be small and may forbid running programs, and a lab holds hosts' disks and a program.
RUN = Path("/run/vistral-lab")
# Short enough for a host name within a machine name of 64 characters.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,23}")


def cache() -> Path:
    """Return the folder for what may be made again: $VISTRAL_CACHE or the user's cache folder."""
    if "VISTRAL_CACHE" in os.environ:
        return Path(os.environ["VISTRAL_CACHE"]).resolve()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).resolve() / "vistral"


def check_name(kind: str, name: str) -> str:
    """Return the name of a lab or host, or raise LabError if it cannot be one."""
    if not _NAME.fullmatch(name) or name.endswith("-"):
        raise LabError(
            f"{kind} name {name!r} is not allowed: use 1 to 24 of a-z, 0-9 and '-',"
            " beginning with a letter and not ending in '-'"
        )
    return name


def folder(lab: str) -> Path:
    """Return the lab's folder, by the path that stays the same whatever the cache."""
    return RUN / lab


def make_folder(lab: str) -> None:
    """Make the lab's folder in the cache and link it into place, if not done yet."""
    if folder(lab).exists():
        return
    target = cache() / "labs" / lab
    target.mkdir(parents=True, exist_ok=True)
    folder(lab).unlink(missing_ok=True)
    folder(lab).symlink_to(target)


def remove_folder(lab: str) -> None:
    """Remove the lab's folder and all in it, if there is one."""
    home = folder(lab)
    target = home.resolve() if home.is_symlink() else cache() / "labs" / lab
    if target.exists():
        shutil.rmtree(target)
    home.unlink(missing_ok=True)


@contextmanager
def lock() -> Iterator[None]:
    """Let one program at a time make or remove parts of labs."""
    while True:
        RUN.mkdir(parents=True, exist_ok=True)
        folder_fd = os.open(RUN, os.O_RDONLY)
        fcntl.flock(folder_fd, fcntl.LOCK_EX)
        # Whoever held it may have removed the folder with the last lab.
        if RUN.exists() and RUN.stat().st_ino == os.fstat(folder_fd).st_ino:
            break
        os.close(folder_fd)
    try:
        yield
    finally:
        if not any(RUN.iterdir()):
            RUN.rmdir()
        os.close(folder_fd)


@dataclass(frozen=True)
class HostRecord:
    """What `up` was told about a host. Sizes in bytes; None is no limit of its own."""

    lab: str
    name: str
    number: int  # the last part of its address
    vm: bool = False
    memory: int | None = None
    disk: int | None = None
    tmpfs: dict[str, int] = field(default_factory=dict)  # path in the host: size

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"

    @property
    def machine(self) -> str:
        """The host's name among all labs of this machine."""
        return f"vistral-{self.lab}.{self.name}"

    @property
    def folder(self) -> Path:
        return folder(self.lab) / "hosts" / self.name

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / "host.unfinished"
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        unfinished.rename(self.folder / "host.json")


def records(lab: str) -> list[HostRecord]:
    """Return the lab's hosts, in the order of their addresses."""
    files = (folder(lab) / "hosts").glob("*/host.json")
    found = [HostRecord(**json.loads(file.read_text())) for file in files]
    return sorted(found, key=lambda record: record.number)


def labs() -> list[str]:
    """Return the names of all labs."""
    return sorted(path.name for path in RUN.iterdir()) if RUN.exists() else []
