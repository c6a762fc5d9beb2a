"""Sizes as people write them."""

import re

from lab.errors import LabError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """Return the bytes meant by a whole number with K, M or G (powers of 1024) or without."""
    found = re.fullmatch(r"([1-9]\d*)([KMG]?)", text)
    if not found:
        raise LabError(f"{text!r} is not a size: write bytes, or use K, M, G, as in 64M")
    return int(found[1]) * _UNITS[found[2]]


def parse_tmpfs(text: str) -> tuple[str, int]:
    """Return the path and the bytes of PATH=SIZE."""
    path, _, size = text.partition("=")
    if not re.fullmatch(r"(/[\w.-]+)+", path):
        raise LabError(f"{text!r} is not PATH=SIZE, as in /var/lib/vistral=64M")
    return path, parse_size(size)
