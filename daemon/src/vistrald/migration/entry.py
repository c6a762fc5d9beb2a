"""What there is at a path: contents and all metadata that a rollback restores."""

import base64
import hashlib
import os
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Entry:
    content: str  # sha256 in hex; "-> target" of a symbolic link; "#inode:bytes:ns" of a model
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    xattrs: dict[str, str] = field(default_factory=dict)  # values in base64

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any] | None) -> Self | None:
        return None if data is None else cls(**data)

    @property
    def is_link(self) -> bool:
        return self.content.startswith("-> ")

    def same_metadata(self, other: "Entry") -> bool:
        """Access times apart: reading changes them."""
        return (self.mode, self.uid, self.gid, self.mtime_ns, self.xattrs) == (
            other.mode,
            other.uid,
            other.gid,
            other.mtime_ns,
            other.xattrs,
        )


def look(path: Path, *, by_identity: bool = False) -> Entry | None:
    """None if nothing is there. `by_identity` spares hashing gigabytes: a rename keeps the inode.

    Raises OSError, IsADirectoryError too.
    """
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(info.st_mode):
        content = f"-> {path.readlink()}"
    elif by_identity:
        content = f"#{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"
    else:
        content = digest(path)
    return Entry(
        content,
        stat.S_IMODE(info.st_mode),
        info.st_uid,
        info.st_gid,
        info.st_atime_ns,
        info.st_mtime_ns,
        read_xattrs(path),
    )


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def read_xattrs(path: Path) -> dict[str, str]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # a file system without them
        return {}
    return {
        name: base64.b64encode(os.getxattr(path, name, follow_symlinks=False)).decode()
        for name in names
    }


def write_metadata(path: Path, entry: Entry) -> None:
    """Owner first, since changing it clears set-user-id bits; times last."""
    info = path.lstat()
    if (info.st_uid, info.st_gid) != (entry.uid, entry.gid):
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if not entry.is_link:
        path.chmod(entry.mode)
    present = read_xattrs(path)
    for name in present.keys() - entry.xattrs.keys():
        os.removexattr(path, name, follow_symlinks=False)
    for name, value in entry.xattrs.items():
        if present.get(name) != value:
            os.setxattr(path, name, base64.b64decode(value), follow_symlinks=False)
    os.utime(path, ns=(entry.atime_ns, entry.mtime_ns), follow_symlinks=False)
