"""A header is believed only where it fits the file to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conversion import mlx_files
from vistrald.conversion.errors import ConversionError
from vistrald.conversion.safetensors import read_folder, read_header

GOOD: dict[str, Any] = {
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
    "a": {"dtype": "U32", "shape": [2, 1], "data_offsets": [0, 8]},
}
DATA = bytes(range(14))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_tensors_are_found_whatever_their_order(file):
    mlx_files.write_raw(file, {"__metadata__": {"format": "mlx"}} | GOOD, DATA)
    second, first = read_header(file)
    assert first.rows(1, 2).tolist() == [[0x07060504]]
    assert second.rows(0, 3).tolist() == [0x0908, 0x0B0A, 0x0D0C]


def test_bfloat16_is_the_upper_half_of_a_float32(file):
    values = np.array([1.0, -2.5, 3e38, 1e-40, np.inf], dtype=np.float32)
    tensor, expected = mlx_files.floats("BF16", values)
    mlx_files.write_safetensors(file, {"x": tensor})
    (found,) = read_header(file)
    assert found.floats(1, 5).tolist() == expected[1:].tolist()


def altered(**changes: Any) -> dict[str, Any]:
    return GOOD | {"a": GOOD["a"] | changes}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (altered(dtype="F8_E4M3"), "F8_E4M3"),
        (altered(shape=[2, 2]), "takes 16 bytes"),
        (altered(shape=[2**40, 2**40]), "takes 4835703278458516698824704 bytes"),
        (altered(shape=[-2, -1]), "shape"),
        (altered(shape=[2.0, 1]), "shape"),
        (altered(shape=[True, 2]), "shape"),
        (altered(shape=[1] * 9 + [2]), "shape"),
        (altered(shape=[]), "shape"),
        (altered(data_offsets=[0, 2**70]), "data_offsets"),
        (altered(data_offsets=[-8, 0]), "data_offsets"),
        (altered(data_offsets=[0]), "data_offsets"),
        (altered(data_offsets=[4, 12]), "overlap or leave a gap"),
        ({"b": GOOD["b"]}, "overlap or leave a gap"),
        ({"a": GOOD["a"]}, "its tensors end at"),
        (GOOD | {"a": 5}, "its entry is 5"),
        (GOOD | {"a": {"dtype": "U32"}}, "its entry is"),
        ([], "no JSON object"),
        (b"{]", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "a name occurs twice"),
        (b"\xff\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(file, header, told):
    mlx_files.write_raw(file, header, DATA)
    with pytest.raises(ConversionError) as caught:
        list(read_header(file))
    assert told in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", (2**63).to_bytes(8, "little") + b"{}", (99).to_bytes(8, "little")]
)
def test_a_length_beyond_the_file_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(ConversionError, match="truncated or no safetensors file"):
        list(read_header(file))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 10_000))
def test_no_damage_gets_beyond_a_refusal(file, at, byte, cut):
    """A byte changed and the end cut off: refused, or every row can be read."""
    mlx_files.write_raw(file, GOOD, DATA)
    content = bytearray(file.read_bytes())
    content[at % len(content)] = byte
    file.write_bytes(content[: len(content) - cut % 3])
    try:
        found = list(read_header(file))
    except ConversionError:
        return
    for tensor in found:
        assert len(tensor.rows(0, tensor.shape[0])) == tensor.shape[0]


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("model-1.safetensors", "model-2.safetensors"):
        mlx_files.write_raw(tmp_path / name, GOOD, DATA)
    with pytest.raises(ConversionError, match="tensor b is also in model-1"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"weight_map": {"a": "model.safetensors"}}, "tensor b should be in no file"),
        (
            {"weight_map": dict.fromkeys("abc", "model.safetensors")},
            "tensor c should be in model.safetensors, it is in no file",
        ),
        ({"weight_map": {"a": "../model.safetensors"}}, "no table of file names"),
        ({"weight_map": {"a": 1}}, "no table of file names"),
        ({}, "no table of file names"),
        ({"weight_map": {"a": "model-2.safetensors"}}, "No such file"),
    ],
)
def test_an_index_that_differs_from_the_files_is_refused(tmp_path, file, index, told):
    mlx_files.write_raw(file, GOOD, DATA)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match=told):
        read_folder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"no model\*\.safetensors"):
        read_folder(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(file):
    mlx_files.write_raw(file, GOOD, DATA)
    second, _ = read_header(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConversionError, match="became shorter"):
        second.rows(0, 3)
