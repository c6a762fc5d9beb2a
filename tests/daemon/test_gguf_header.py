import struct
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.daemon.gguf_files import ARRAY, STRING, U32, Gguf, array, key, tensor, text
from vistrald.gguf_header import TENSOR_TYPES, Array, Header, read_header
from vistrald.gguf_source import CHUNK_BYTES, HEADER_BYTES, FileSource, HeaderError

FUZZ = settings(max_examples=500, deadline=None)
ARCHITECTURE = key("general.architecture", STRING, text("llama"))


@dataclass
class Bytes:
    """A source that counts what is read of it; `size` may be more than there is."""

    data: bytes
    size: int = 0
    name: str = "file.gguf"
    read: int = 0

    def __post_init__(self) -> None:
        self.size = self.size or len(self.data)

    def read_at(self, offset: int, count: int) -> bytes:
        found = self.data[offset : offset + count]
        self.read += len(found)
        return found


def read(file: Gguf) -> Header:
    return read_header(Bytes(bytes(file)))


def refused(file: Gguf) -> HeaderError:
    with pytest.raises(HeaderError, match=r"^file\.gguf: .* is .*, expected .*; .+") as caught:
        read(file)
    return caught.value


def test_a_real_file(model_path: Path) -> None:
    with FileSource(model_path) as source:
        header = read_header(source)
    reader = gguf.GGUFReader(model_path)
    assert header.data_offset == reader.data_offset
    assert header.architecture == "llama"
    assert "<|im_start|>" in (header.chat_template or "")
    assert header.values["llama.block_count"] == 30
    assert header.values["tokenizer.ggml.tokens"] == Array("string", 49152, 1107, 762386)
    theirs = [(each.name, tuple(each.shape), each.n_bytes) for each in reader.tensors]
    assert [(each.name, each.dimensions, each.size) for each in header.tensors] == theirs
    assert header.weights == sum(size for _, _, size in theirs)


def test_what_the_writer_of_the_package_gguf_writes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_bool("yes", True)
    writer.add_tensor("a", np.zeros((3, 5), dtype=np.float32))
    writer.add_tensor("b", np.zeros((7,), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with FileSource(path) as source:
        header = read_header(source)
    assert (header.values["numbers"], header.values["yes"]) == ((1.5, 2.5), True)
    assert [(each.dimensions, each.offset) for each in header.tensors] == [((5, 3), 0), ((7,), 64)]
    assert header.chat_template is None


def test_block_sizes_are_those_of_the_package_gguf() -> None:
    sizes = {
        int(kind): (kind.name, *size) for kind, size in gguf.constants.GGML_QUANT_SIZES.items()
    }
    assert {kind: sizes[kind] for kind in TENSOR_TYPES} == TENSOR_TYPES


def test_only_the_header_is_read_of_a_large_file() -> None:
    size = 13_000_000_000
    file = Gguf(tensors=[tensor("a", (size // 4,), 0)], data=b"")
    source = Bytes(bytes(file) + bytes(3 * CHUNK_BYTES), size=len(bytes(file)) + size)
    assert read_header(source).weights == size
    assert source.read == CHUNK_BYTES


def test_a_vocabulary_is_passed_over() -> None:
    tokens = [text(f"word{number}") for number in range(20_000)]
    types = array(U32, [bytes(4)] * 20_000)
    keys = [ARCHITECTURE, key("tokens", ARRAY, array(STRING, tokens)), key("types", ARRAY, types)]
    keys.append(key("after", U32, struct.pack("<I", 7)))
    header = read(Gguf(keys=keys))
    assert isinstance(found := header.values["tokens"], Array)
    assert (found.length, found.size) == (20_000, len(b"".join(tokens)))
    assert header.values["after"] == 7


def test_an_array_of_a_value_for_each_layer_is_kept() -> None:
    assert read(Gguf()).values["llama.attention.head_count_kv"] == (8, 8)


def test_a_further_part_of_a_split_model_names_no_architecture() -> None:
    keys = [key("split.no", U32, b"\1\0\0\0"), key("split.count", U32, b"\2\0\0\0")]
    header = read(Gguf(keys=keys))
    assert (header.parts, header.architecture) == (2, "")


def test_the_first_part_of_a_split_model_may_have_no_tensors() -> None:
    file = Gguf(keys=[ARCHITECTURE, key("split.count", U32, b"\2\0\0\0")], tensors=[], data=b"")
    assert read(file).weights == 0


HUGE = 2**63
WRONG: dict[str, tuple[Gguf, str, str]] = {
    "magic": (Gguf(magic=b"PK\3\4"), "magic", r"b'PK\x03\x04'"),
    "old": (Gguf(version=1), "version", "1"),
    "big-endian": (Gguf(version=0x03000000), "version", "0x3000000, big-endian"),
    "no tensors": (Gguf(tensors=[]), "tensor count", "0"),
    "tensor count": (Gguf(tensor_count=HUGE), "tensor count", str(HUGE)),
    "key count": (Gguf(key_count=HUGE), "key count", str(HUGE)),
    "key length": (Gguf(keys=[struct.pack("<Q", HUGE)]), "length of key 0 of 1", str(HUGE)),
    "key twice": (Gguf(keys=[ARCHITECTURE] * 2), "key 'general.architecture'", "there twice"),
    "key not UTF-8": (Gguf(keys=[text(b"\xff")]), "key 0 of 1", r"b'\xff'"),
    "value type": (Gguf(keys=[key("k", 13, b"")]), "type of k", "13"),
    "boolean": (Gguf(keys=[key("k", 7, b"\2")]), "k", r"b'\x02'"),
    "string length": (Gguf(keys=[key("k", STRING, b"\xff" * 8)]), "length of k", str(2**64 - 1)),
    "nested array": (
        Gguf(keys=[key("k", ARRAY, array(ARRAY, [array(U32, [])]))]),
        "element type of k",
        "9 (an array in an array)",
    ),
    "array length": (
        Gguf(keys=[key("k", ARRAY, array(U32, [], HUGE))]), "length of k", str(HUGE)
    ),
    "array beyond the end": (Gguf(keys=[key("k", ARRAY, array(U32, [], 10**6))]), "k", "cut off"),
    "token length": (
        Gguf(keys=[key("k", ARRAY, array(STRING, [text("a"), b"\xff" * 8]))]),
        "length of k[1]",
        str(2**64 - 1),
    ),
    "no architecture": (Gguf(keys=[]), "general.architecture", "absent"),
    "architecture": (
        Gguf(keys=[key("general.architecture", U32, bytes(4))]), "general.architecture", "0"
    ),
    "template": (
        Gguf(keys=[ARCHITECTURE, key("tokenizer.chat_template", U32, bytes(4))]),
        "tokenizer.chat_template",
        "0",
    ),
    "alignment": (
        Gguf(keys=[ARCHITECTURE, key("general.alignment", U32, b"\x30\0\0\0")]),
        "general.alignment",
        "48",
    ),
    "tensor name": (
        Gguf(tensors=[tensor("n" * 64, (4,), 0)]), "length of name of tensor 0 of 1", "64"
    ),
    "tensor twice": (
        Gguf(tensors=[tensor("a", (8,), 0), tensor("a", (8,), 32)]), "tensor 'a'", "there twice"
    ),
    "five dimensions": (Gguf(tensors=[tensor("a", (1,) * 5, 0)]), "dimensions of 'a'", "5"),
    "no elements": (
        Gguf(tensors=[tensor("a", (4, 0), 0)]), "dimensions of 'a'", "(4, 0) in F32"
    ),
    "overflowing dimensions": (
        Gguf(tensors=[tensor("a", (2**32, 2**32, 2**32), 0)]),
        "dimensions of 'a'",
        f"{(2**32,) * 3} in F32",
    ),
    "broken rows": (
        Gguf(tensors=[tensor("a", (100, 256), 0, 12)]), "dimensions of 'a'", "(100, 256) in Q4_K"
    ),
    "tensor type": (Gguf(tensors=[tensor("a", (32,), 0, 4)]), "type of 'a'", "4"),
    "not aligned": (
        Gguf(tensors=[tensor("a", (8,), 0), tensor("b", (8,), 33)]), "offset of tensor 'b'", "33"
    ),
    "overlapping": (
        Gguf(tensors=[tensor("a", (16,), 0), tensor("b", (8,), 32)]),
        "offset of tensor 'b'",
        "32 (it overlaps the one before)",
    ),
    "gap": (
        Gguf(tensors=[tensor("a", (8,), 0), tensor("b", (8,), 64)]),
        "offset of tensor 'b'",
        "64 (there is a gap)",
    ),
    "data cut off": (Gguf(data=bytes(95)), "file size", "447"),
    "data too long": (Gguf(data=bytes(97)), "file size", "449"),
}  # fmt: skip


@pytest.mark.requirement("4.1")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named(name: str) -> None:
    file, where, found = WRONG[name]
    error = refused(file)
    assert (error.field, error.found) == (where, found)


@FUZZ
@given(st.integers(0, len(bytes(Gguf())) - 1))
def test_cut_off_anywhere(length: int) -> None:
    with pytest.raises(HeaderError):
        read_header(Bytes(bytes(Gguf())[:length]))


# So many bytes of a value that stands anywhere in the header.
PATCHES = st.one_of(st.binary(min_size=1, max_size=16), st.just(b"\xff" * 8), st.just(bytes(8)))


@FUZZ
@given(st.integers(0, len(bytes(Gguf())) - 1), PATCHES)
def test_overwritten_anywhere(at: int, patch: bytes) -> None:
    """Whatever it says, it is read or refused; and what is read lies in the file."""
    data = bytes(Gguf())
    data = (data[:at] + patch + data[at + len(patch) :])[: len(data)]
    try:
        header = read_header(Bytes(data))
    except HeaderError:
        return
    for each in header.tensors:
        assert 0 < each.size <= len(data) - header.data_offset - each.offset


@FUZZ
@given(st.binary(max_size=300))
def test_anything_behind_the_magic(tail: bytes) -> None:
    with pytest.raises(HeaderError):
        read_header(Bytes(b"GGUF\3\0\0\0" + tail))


def test_claims_of_a_header_cost_neither_memory_nor_time() -> None:
    """An endless vocabulary of empty strings in a sparse file of a terabyte."""

    class Zeros:
        name, size = "file.gguf", 2**40
        reads, most = 0, 0

        def read_at(self, offset: int, count: int) -> bytes:
            self.reads, self.most = self.reads + 1, max(self.most, count)
            head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1024)
            head += key("k", ARRAY, array(STRING, [], 2**22))
            return (head[offset:] + bytes(count))[:count]

    source = Zeros()
    with pytest.raises(HeaderError):
        read_header(source)
    assert source.most == CHUNK_BYTES
    assert source.reads <= HEADER_BYTES // CHUNK_BYTES + 1
