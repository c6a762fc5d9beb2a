"""Where a GGUF header is read from, and bounded reading of it: a chunk in memory, never more."""

import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

HEADER_BYTES = 64 * 2**20  # a vocabulary of 131072 tokens with its merges takes 10
CHUNK_BYTES = 2**20
STRING_BYTES = 2**20  # chat templates take up to 20 kB

AGAIN = "fetch the file again, or convert the model anew"


class HeaderError(Exception):
    """What is wrong with the header: the field, its value, what was expected."""

    def __init__(self, source: str, where: str, found: object, expected: str, remedy: str) -> None:
        super().__init__(f"{source}: {where} is {found}, expected {expected}; {remedy}")
        self.field = where
        self.found = str(found)
        self.expected = expected


class Source(Protocol):
    """Bytes by offset."""

    name: str  # as messages call it
    size: int  # bytes

    def read_at(self, offset: int, count: int) -> bytes:
        """`count` bytes, fewer only where the source ends."""


class FileSource:
    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.name = str(path)
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def read_at(self, offset: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._file.close()


class Reader:
    """A position in the source, and the chunk around it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._chunk = b""
        self._start = 0  # of the chunk, in the source
        self._at = 0  # in the chunk

    @property
    def position(self) -> int:
        return self._start + self._at

    def error(self, where: str, found: object, expected: str, remedy: str = AGAIN) -> HeaderError:
        return HeaderError(self.source.name, where, found, expected, remedy)

    def take(self, count: int, where: str) -> bytes:
        """The next `count` bytes, which are at most STRING_BYTES."""
        if self._at + count > len(self._chunk):
            self._fill(count, where)
        self._at += count
        return self._chunk[self._at - count : self._at]

    def number(self, code: str, where: str) -> int:
        """One little-endian integer."""
        found: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), where))[0]
        return found

    def text(self, where: str, most: int) -> str:
        length = self.number("Q", f"length of {where}")
        if length > most:
            raise self.error(f"length of {where}", length, f"at most {most} bytes")
        data = self.take(length, where)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.error(where, repr(data[:40]), "UTF-8 text") from None

    def skip(self, count: int, where: str) -> None:
        """Over bytes that nobody looks at; only a part that is in the chunk was read."""
        self._at += count
        self._check_end(0, where)

    def skip_strings(self, count: int, where: str) -> None:
        """Over so many strings; here a header's time is spent, so the loop is bare."""
        unpack = struct.Struct("<Q").unpack_from
        for number in range(count):
            if self._at + 8 > len(self._chunk):
                self._fill(8, where)
            (length,) = unpack(self._chunk, self._at)
            if length > STRING_BYTES:
                raise self.error(
                    f"length of {where}[{number}]", length, f"at most {STRING_BYTES} bytes"
                )
            self._at += 8 + length
        self._check_end(0, where)

    def _fill(self, count: int, where: str) -> None:
        """Reads the chunk that begins at the position and has at least `count` bytes."""
        self._check_end(count, where)
        self._start, self._at = self.position, 0
        self._chunk = self.source.read_at(self._start, max(count, CHUNK_BYTES))
        if len(self._chunk) < count:
            raise self.error(where, f"cut off after {len(self._chunk)} bytes", f"{count} bytes")

    def _check_end(self, count: int, where: str) -> None:
        end = self.position + count
        if end > self.source.size:
            raise self.error(
                where, "cut off", f"to end by byte {end}, the file has {self.source.size}"
            )
        if end > HEADER_BYTES:
            raise self.error(where, f"beyond byte {end}", f"a header of at most {HEADER_BYTES}")
