"""Is the model file the one that was agreed upon? Answered before libllama sees a byte of it.

Malformed GGUF files have caused memory errors in libllama, so a missing, truncated or altered
file is refused here, by size, header and sha256. Hashing 13 GB takes the better part of a minute;
a stamp in the state directory remembers which file (by inode and times) had the digest.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vistrald.gguf_header import read_header
from vistrald.gguf_source import FileSource, HeaderError

CHUNK_BYTES = 8 * 2**20

Fault = Literal["missing", "size", "format", "digest"]


class ModelFileError(Exception):
    """The file is not the configured one; `expected` and `found` are what was compared."""

    def __init__(self, fault: Fault, message: str, expected: str, found: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.expected = expected
        self.found = found


@dataclass(frozen=True)
class Stamp:
    """The identity of a file at the moment its digest was computed."""

    path: str
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    sha256: str


def verify(
    path: Path,
    size: int,
    sha256: str,
    state_dir: Path,
    progress: Callable[[float], None] = lambda _: None,
) -> bool:
    """Checks the file against size (bytes) and sha256 (hex); True if it had to be hashed.

    `progress` is called with the hashed fraction and may raise to stop. Raises ModelFileError.
    """
    stat = _stat(path)
    if stat.st_size != size:
        raise ModelFileError(
            "size",
            f"{path} has {stat.st_size} bytes, expected {size}: "
            f"{'truncated or unfinished download' if stat.st_size < size else 'not this file'}; "
            "fetch the file again",
            expected=str(size),
            found=str(stat.st_size),
        )
    check_header(path)
    stamp_file = state_dir / f"verified-{sha256[:16]}.json"
    expected = _stamp(path, stat, sha256)
    if _read_stamp(stamp_file) == expected:
        return False
    found = hash_file(path, size, progress)
    if found != sha256:
        raise ModelFileError(
            "digest",
            f"{path} has sha256 {found}, expected {sha256}: the file was altered or is another "
            "one; fetch it again or correct model.sha256",
            expected=sha256,
            found=found,
        )
    # A file that changed while it was read yields a digest of neither version.
    if _stamp(path, _stat(path), sha256) != expected:
        raise ModelFileError(
            "digest",
            f"{path} changed while it was being verified; start again when it is complete",
            expected=sha256,
            found="changing",
        )
    _write_stamp(stamp_file, expected)
    return True


def hash_file(path: Path, size: int, progress: Callable[[float], None]) -> str:
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done / size)
    return digest.hexdigest()


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise ModelFileError(
            "missing",
            f"{path} does not exist; place the model there or correct model.path",
            expected=str(path),
            found="no file",
        ) from None


def check_header(path: Path) -> None:
    """What libllama would have to trust: counts, lengths, and where the tensors lie.

    Raises ModelFileError.
    """
    with FileSource(path) as source:
        try:
            read_header(source)
        except HeaderError as error:
            raise ModelFileError("format", str(error), error.expected, error.found) from None


def _stamp(path: Path, stat: os.stat_result, sha256: str) -> Stamp:
    return Stamp(
        path=str(path.resolve()),
        size=stat.st_size,
        inode=stat.st_ino,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        sha256=sha256,
    )


def _read_stamp(file: Path) -> Stamp | None:
    try:
        return Stamp(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # absent, or written by another version: the file is simply hashed again


def _write_stamp(file: Path, stamp: Stamp) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(stamp), indent=2))
    part.replace(file)
