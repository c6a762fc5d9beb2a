"""GGUF files of a few bytes, right or wrong in one place."""

import struct
from dataclasses import dataclass, field
from pathlib import Path

ALIGNMENT = 32
U32, F32, STRING, ARRAY = 4, 6, 8, 9


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def number(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def array(kind: int, elements: list[bytes], length: int | None = None) -> bytes:
    """`length` is what the header claims, if not the truth."""
    count = len(elements) if length is None else length
    return struct.pack("<IQ", kind, count) + b"".join(elements)


def tensor(name: str, dimensions: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    """F32 by default."""
    head = text(name) + struct.pack("<I", len(dimensions))
    return head + struct.pack(f"<{len(dimensions)}QIQ", *dimensions, kind, offset)


@dataclass
class Gguf:
    """The parts of a file; by default a correct one of two tensors."""

    keys: list[bytes] = field(
        default_factory=lambda: [
            key("general.architecture", STRING, text("llama")),
            key("tokenizer.chat_template", STRING, text("{{ messages }}")),
            key("tokenizer.ggml.tokens", ARRAY, array(STRING, [text("да"), text("нет")])),
            key("llama.attention.head_count_kv", ARRAY, array(U32, [b"\x08\0\0\0"] * 2)),
        ]
    )
    tensors: list[bytes] = field(
        default_factory=lambda: [tensor("a", (4, 4), 0), tensor("b", (8,), 64)]
    )
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    data: bytes = bytes(96)

    def __bytes__(self) -> bytes:
        keys = len(self.keys) if self.key_count is None else self.key_count
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        head = self.magic + struct.pack("<IQQ", self.version, tensors, keys)
        head += b"".join(self.keys) + b"".join(self.tensors)
        return head + bytes(-len(head) % ALIGNMENT) + self.data

    def write(self, path: Path) -> Path:
        path.write_bytes(bytes(self))
        return path
