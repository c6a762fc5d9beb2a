"""Text that goes back to its file byte for byte: encodings, byte order marks, line endings."""

import re
from dataclasses import dataclass

# str.splitlines also splits at form feeds and Unicode separators, which are no line ends in files.
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Source:
    """`mark` + `text` in `codec` are the file's bytes; `text` is without the byte order mark."""

    text: str
    codec: str
    mark: str = ""

    def encode(self, text: str) -> bytes:
        return (self.mark + text).encode(self.codec)

    @property
    def is_unicode(self) -> bool:
        return self.codec != "latin-1"


def decode(data: bytes) -> Source:
    """Any bytes: those that are not Unicode become latin-1, in which each byte is a character."""
    codec = "utf-8"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        codec = "utf-16-le" if data.startswith(b"\xff\xfe") else "utf-16-be"
    try:
        text = data.decode(codec)
        if text.encode(codec) != data:
            raise ValueError(codec)
    except ValueError:
        codec, text = "latin-1", data.decode("latin-1")
    mark = "\ufeff" if codec != "latin-1" and text.startswith("\ufeff") else ""
    return Source(text[len(mark) :], codec, mark)


def lines_of(text: str) -> list[str]:
    """With their line ends; joined they are the text."""
    return LINE.findall(text)


def split_end(line: str) -> tuple[str, str]:
    body = line.rstrip("\r\n")
    return body, line[len(body) :]
