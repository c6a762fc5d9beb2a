"""The header of a GGUF file, read with strict bounds before libllama sees the file.

The source is anything that gives bytes by offset: a local file, or a server by range requests.
Only the header is read, a chunk at a time; of a vocabulary's arrays only kind, length and place are
kept. A malformed header costs at most the limits below, whatever counts it claims.
"""

import math
import struct
from dataclasses import dataclass, field

from vistrald.gguf_source import STRING_BYTES, Reader, Source

VERSIONS = (2, 3)
KEYS = 1024  # real files have below 100
TENSORS = 2**16  # a 24B model has 363
KEY_BYTES = 2**16 - 1  # the format's own limit
ARRAY_LENGTH = 2**22
KEPT_NUMBERS = 1024  # arrays of so many numbers are kept: a value for each layer
TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME less its zero
DIMENSIONS = 4  # GGML_MAX_DIMS
TENSOR_BYTES = 2**48
DEFAULT_ALIGNMENT = 32
ALIGNMENTS = tuple(2**power for power in range(3, 17))

STRING, ARRAY = 8, 9
SCALARS = {  # value type -> its name and struct code
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}

# Tensor type -> name, elements of a block, bytes of a block (enum ggml_type). Kept here because
# importing the package gguf takes numpy's memory; a test compares the two.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}


@dataclass(frozen=True)
class Array:
    """An array that was skipped: what it holds, and where."""

    kind: str
    length: int
    offset: int  # in the file, of the first element
    size: int  # bytes


Value = int | float | bool | str | tuple[int | float | bool, ...] | Array


@dataclass(frozen=True)
class Tensor:
    name: str
    dimensions: tuple[int, ...]  # elements of a row first
    kind: str
    offset: int  # from the data's beginning
    size: int  # bytes


@dataclass(frozen=True)
class Header:
    source: str
    file_size: int  # bytes
    version: int
    values: dict[str, Value] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    data_offset: int  # bytes; so many were read

    @property
    def architecture(self) -> str:
        """Empty for a further part of a split model: the first one says it."""
        return str(self.values.get("general.architecture", ""))

    @property
    def parts(self) -> int:
        """Files that the model is split into."""
        count = self.values.get("split.count", 1)
        return count if isinstance(count, int) and count else 1

    @property
    def chat_template(self) -> str | None:
        """None: a model that was not made for chats."""
        template = self.values.get("tokenizer.chat_template")
        return None if template is None else str(template)

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors)


def read_header(source: Source) -> Header:
    """Reads and checks a header, the tensors' places in the file included. Raises HeaderError."""
    reader = Reader(source)
    version, tensor_count, key_count = _read_counts(reader)
    values: dict[str, Value] = {}
    for number in range(key_count):
        key = reader.text(f"key {number} of {key_count}", KEY_BYTES)
        if key in values:
            raise reader.error(f"key {key!r}", "there twice", "each key once")
        values[key] = _read_value(reader, key)
    alignment = _check_values(reader, values)
    if not tensor_count and "split.count" not in values:
        raise reader.error("tensor count", 0, "tensors")
    tensors = _read_tensors(reader, tensor_count, alignment)
    data_offset = _aligned(reader.position, alignment)
    _check_size(reader, data_offset, tensors, alignment)
    return Header(source.name, source.size, version, values, tensors, data_offset)


def _read_counts(reader: Reader) -> tuple[int, int, int]:
    if reader.source.size < 24:
        raise reader.error("file size", reader.source.size, "a GGUF file, at least 24 bytes")
    if (magic := reader.take(4, "magic")) != b"GGUF":
        raise reader.error(
            "magic", repr(magic), "b'GGUF'", "it is no GGUF file: convert the model to GGUF first"
        )
    version = reader.number("I", "version")
    if version not in VERSIONS:
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        raise reader.error(
            "version",
            f"{version:#x}, big-endian" if big_endian else version,
            f"little-endian {' or '.join(map(str, VERSIONS))}",
            "convert the model anew",
        )
    tensors, keys = reader.number("Q", "tensor count"), reader.number("Q", "key count")
    if tensors > TENSORS:
        raise reader.error("tensor count", tensors, f"at most {TENSORS}")
    if keys > KEYS:
        raise reader.error("key count", keys, f"at most {KEYS}")
    return version, tensors, keys


def _read_value(reader: Reader, key: str) -> Value:
    kind = reader.number("I", f"type of {key}")
    if kind == STRING:
        return reader.text(key, STRING_BYTES)
    if kind == ARRAY:
        return _read_array(reader, key)
    if kind not in SCALARS:
        raise reader.error(f"type of {key}", kind, "a value type, 0 to 12")
    return _read_scalars(reader, key, kind, 1)[0]


def _read_array(reader: Reader, key: str) -> Value:
    kind = reader.number("I", f"element type of {key}")
    if kind != STRING and kind not in SCALARS:
        nested = " (an array in an array)" if kind == ARRAY else ""
        raise reader.error(f"element type of {key}", f"{kind}{nested}", "strings or numbers")
    length = reader.number("Q", f"length of {key}")
    if length > ARRAY_LENGTH:
        raise reader.error(f"length of {key}", length, f"at most {ARRAY_LENGTH}")
    offset = reader.position
    if kind == STRING:
        reader.skip_strings(length, key)
        return Array("string", length, offset, reader.position - offset)
    name, code = SCALARS[kind]
    if length <= KEPT_NUMBERS:
        return _read_scalars(reader, key, kind, length)
    reader.skip(length * struct.calcsize("<" + code), key)
    return Array(name, length, offset, reader.position - offset)


def _read_scalars(
    reader: Reader, key: str, kind: int, count: int
) -> tuple[int | float | bool, ...]:
    name, code = SCALARS[kind]
    data = reader.take(count * struct.calcsize("<" + code), key)
    if name == "bool" and data.strip(b"\x00\x01"):
        raise reader.error(key, repr(data[:40]), "booleans, 0 or 1")
    found: tuple[int | float | bool, ...] = struct.unpack(f"<{count}{code}", data)
    return found


def _check_values(reader: Reader, values: dict[str, Value]) -> int:
    """Those that the header itself needs; returns the alignment."""
    architecture = values.get("general.architecture")
    further = architecture is None and values.get("split.no", 0) != 0
    if not further and (not isinstance(architecture, str) or not architecture):
        raise reader.error("general.architecture", _shown(architecture), "a name such as 'llama'")
    template = values.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise reader.error("tokenizer.chat_template", _shown(template), "a string")
    alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
    if alignment not in ALIGNMENTS or not isinstance(alignment, int):
        raise reader.error("general.alignment", _shown(alignment), f"one of {ALIGNMENTS}")
    return alignment


def _read_tensors(reader: Reader, count: int, alignment: int) -> tuple[Tensor, ...]:
    """The tensors, which lie one behind the other: libllama accepts no other order, and no gap."""
    tensors: list[Tensor] = []
    names: set[str] = set()
    free = 0  # where the next one begins
    for number in range(count):
        tensor = _read_tensor(reader, f"tensor {number} of {count}")
        what = f"tensor {tensor.name!r}"
        if tensor.name in names:
            raise reader.error(what, "there twice", "each name once")
        if tensor.offset % alignment:
            raise reader.error(f"offset of {what}", tensor.offset, f"a multiple of {alignment}")
        if tensor.offset != free:
            how = "it overlaps the one before" if tensor.offset < free else "there is a gap"
            raise reader.error(f"offset of {what}", f"{tensor.offset} ({how})", str(free))
        names.add(tensor.name)
        tensors.append(tensor)
        free = _aligned(tensor.offset + tensor.size, alignment)
    return tuple(tensors)


def _read_tensor(reader: Reader, where: str) -> Tensor:
    name = reader.text(f"name of {where}", TENSOR_NAME_BYTES)
    count = reader.number("I", f"dimensions of {name!r}")
    if not 1 <= count <= DIMENSIONS:
        raise reader.error(f"dimensions of {name!r}", count, f"1 to {DIMENSIONS}")
    dimensions = tuple(reader.number("Q", f"dimensions of {name!r}") for _ in range(count))
    kind = reader.number("I", f"type of {name!r}")
    if kind not in TENSOR_TYPES:
        raise reader.error(
            f"type of {name!r}", kind, "a tensor type that this version knows",
            "quantize the model to another type",
        )  # fmt: skip
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    size = math.prod(dimensions) // block * block_bytes
    if not 0 < size <= TENSOR_BYTES or dimensions[0] % block:
        raise reader.error(
            f"dimensions of {name!r}",
            f"{dimensions} in {type_name}",
            f"rows of a multiple of {block} elements, 1 to {TENSOR_BYTES} bytes in all",
        )
    return Tensor(name, dimensions, type_name, reader.number("Q", f"offset of {name!r}"), size)


def _check_size(
    reader: Reader, data_offset: int, tensors: tuple[Tensor, ...], alignment: int
) -> None:
    """The data ends where the file does; its last bytes may be padding."""
    # The first part of a split model may have no tensors, and then ends with its header.
    end = data_offset + tensors[-1].offset + tensors[-1].size if tensors else reader.position
    size = reader.source.size
    if size < end:
        raise reader.error("file size", size, f"{end} bytes for the header's tensors")
    if size > _aligned(end, alignment):
        raise reader.error(
            "file size", size, f"{end} bytes for the header's tensors, and nothing behind them"
        )


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _shown(value: object) -> str:
    return "absent" if value is None else repr(value)[:80]
