"""KV states of prefixes as files, so that they outlive the process.

A file is a line of JSON, the token ids, and the state as libllama gives it. It is written under
another name, synced and renamed; the checksum covers the rest: what is not whole counts as absent
and is removed. A state is valid only under the key that it was written with, which names the model,
the KV types and the library. Nothing here knows of requests or of llama.
"""

import contextlib
import ctypes
import hashlib
import json
import logging
import mmap
import os
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

HEADER_BYTES = 512  # the line of JSON, padded: what follows begins at a known place
SUFFIX, PART = ".kv", ".part"

# Gets a buffer of the state's size; returns whether it could fill, or use, all of it.
Transfer = Callable[["ctypes.Array[ctypes.c_uint8]"], bool]


class DiskCache:
    """One thread saves and loads; a second one, of its own, syncs what was saved.

    Files hold what prompts say: the folder is for the service's own user.
    """

    def __init__(self, folder: Path, key: str, max_bytes: int) -> None:
        """Takes up the folder's files of this key. Raises OSError if there can be no folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._key = hashlib.sha256(key.encode()).hexdigest()
        self.max_bytes = max_bytes
        self._lengths: dict[str, int] = {}  # file name -> tokens
        self.failure = ""  # why the last save failed, if it did
        self.evictions = 0  # files that the cap removed
        self.damaged = 0  # files that were of no use
        self._writer: threading.Thread | None = None
        for path in folder.iterdir():
            if path.suffix == PART:  # of a process that died while writing
                path.unlink(missing_ok=True)
            elif path.suffix == SUFFIX:
                header = _read_header(path)
                if header and header.get("key") == self._key:
                    self._lengths[path.name] = int(header["tokens"])
        self._prune()

    @property
    def files(self) -> int:
        """Those that this process can use."""
        return len(self._lengths)

    @property
    def bytes(self) -> int:
        """Of all files in the folder, another model's too."""
        return sum(size for _, size, _ in self._all())

    def covers(self, tokens: Sequence[int]) -> int:
        """Tokens of the longest saved prefix of `tokens`; any thread may ask."""
        longest = start = 0
        digest = hashlib.sha256(self._key.encode())
        for length in sorted(set(self._lengths.values())):
            if length > len(tokens):
                break
            digest.update(array("i", tokens[start:length]).tobytes())
            start = length
            if digest.hexdigest() + SUFFIX in self._lengths:
                longest = length
        return longest

    def save(self, tokens: Sequence[int], size: int, fill: Transfer) -> None:
        """Has `fill` put the state into the file's own pages; syncing goes on in the background.

        Not saved is what exceeds the cap, and what the disk has no room for: then `failure` says
        why. What was saved before must have been waited for.
        """
        self.failure = ""
        ids = array("i", tokens).tobytes()
        total = HEADER_BYTES + len(ids) + size
        if total > self.max_bytes:
            self.failure = f"it has {total} bytes, the cap of all files is {self.max_bytes}"
            return
        name = self._name(tokens)
        part = self._folder / f"{name}{PART}"
        try:
            with part.open("wb+") as file:
                # Allocated, not only sized: a full disk would kill the process at a page's write.
                os.posix_fallocate(file.fileno(), 0, total)
                pages = mmap.mmap(file.fileno(), total)
        except OSError as error:
            self._give_up(part, error)
            return
        pages[HEADER_BYTES : HEADER_BYTES + len(ids)] = ids
        buffer = (ctypes.c_uint8 * size).from_buffer(pages, HEADER_BYTES + len(ids))
        filled = fill(buffer)
        del buffer  # pages cannot be closed before
        if not filled:
            pages.close()
            self._give_up(part, OSError("libllama could not give the state"))
            return
        self._writer = threading.Thread(
            target=self._publish, args=(part, name, pages, len(tokens)), name="prefix-writer"
        )
        self._writer.start()

    def load(self, tokens: Sequence[int], use: Transfer) -> bool:
        """Hands the saved state of exactly `tokens` to `use`; False if it is absent or damaged."""
        path = self._folder / self._name(tokens)
        ids = array("i", tokens).tobytes()
        start = HEADER_BYTES + len(ids)
        try:
            with path.open("rb") as file:
                # Private: libllama reads the file's own pages, which the kernel can reclaim.
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            self._remove(path, error)
            return False
        header = _parse(pages[:HEADER_BYTES])
        whole = (
            header is not None
            and header.get("key") == self._key
            and pages[HEADER_BYTES:start] == ids
            and header.get("checksum") == _checksum(pages)
        )
        if whole:
            whole = use((ctypes.c_uint8 * (len(pages) - start)).from_buffer(pages, start))
        pages.close()
        if not whole:
            self._remove(path, ValueError("damaged"))
            return False
        os.utime(path)  # the least recently used go first
        return True

    def wait(self) -> None:
        """Until what was saved is on disk."""
        if self._writer:
            self._writer.join()

    def _publish(self, part: Path, name: str, pages: mmap.mmap, tokens: int) -> None:
        try:
            header = {"key": self._key, "tokens": tokens, "checksum": _checksum(pages)}
            line = json.dumps(header).encode()
            pages[: len(line) + 1] = line + b"\n"
            pages.flush()
            pages.close()
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.rename(self._folder / name)
            folder = os.open(self._folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            self._give_up(part, error)
            return
        self._lengths[name] = tokens
        self._prune()

    def _prune(self) -> None:
        """Removes the least recently used until the folder is within the cap, other keys' too."""
        files = self._all()
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            self._lengths.pop(path.name, None)
            self.evictions += 1
            excess -= size

    def _all(self) -> list[tuple[int, int, Path]]:
        """Each file's time of last use, its size in bytes, its path."""
        files = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        return files

    def _remove(self, path: Path, error: Exception) -> None:
        log.warning("prefix cache: %s is of no use and was removed: %s", path, error)
        path.unlink(missing_ok=True)
        self._lengths.pop(path.name, None)
        self.damaged += 1

    def _give_up(self, part: Path, error: OSError) -> None:
        self.failure = str(error)
        log.warning("prefix cache: %s not saved: %s", part, error)
        with contextlib.suppress(OSError):
            part.unlink()

    def _name(self, tokens: Sequence[int]) -> str:
        digest = hashlib.sha256(self._key.encode() + array("i", tokens).tobytes())
        return digest.hexdigest() + SUFFIX


def _checksum(pages: mmap.mmap) -> str:
    with memoryview(pages) as whole, whole[HEADER_BYTES:] as body:
        return hashlib.blake2b(body, digest_size=32).hexdigest()


def _read_header(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            return _parse(file.read(HEADER_BYTES))
    except OSError:
        return None


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(data.partition(b"\n")[0])
    except ValueError:
        return None
    return header if isinstance(header, dict) and isinstance(header.get("tokens"), int) else None
