"""Reads safetensors files row by row. numpy has no bfloat16, so the package of that name cannot."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vistrald.conversion.errors import ConversionError

Array = np.ndarray[Any, np.dtype[Any]]

LENGTH_BYTES = 8  # the header's length, u64, is what a file begins with
HEADER_LIMIT = 16 * 2**20  # bytes; that of a 24B model in one file has 0.2 MB
DIMENSIONS_LIMIT = 4
DTYPES = {"U32": "<u4", "BF16": "<u2", "F16": "<f2", "F32": "<f4"}
INDEX = "model.safetensors.index.json"
AGAIN = "fetch the file again and compare its sha256 with the repository's"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes lie; dimensions rows first."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the file

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def columns(self) -> int:
        return prod(self.shape[1:])

    def rows(self, start: int, end: int) -> Array:
        """Rows start <= r < end as they are stored. Raises ConversionError: the file ends early."""
        stored = np.dtype(DTYPES[self.dtype])
        count = (end - start) * self.columns
        offset = self.offset + start * self.columns * stored.itemsize
        values = np.fromfile(self.file, dtype=stored, count=count, offset=offset)
        if len(values) != count:
            raise ConversionError(
                f"{self.file} became shorter while tensor {self.name} was read; {AGAIN}"
            )
        return values.reshape(end - start, *self.shape[1:])

    def floats(self, start: int, end: int) -> Array:
        """The same as float32; for U32 there is no such reading."""
        values = self.rows(start, end)
        if self.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False)


def read_folder(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model's shards, by name. Raises ConversionError for anything amiss."""
    index = folder / INDEX
    listed = _weight_map(index) if index.exists() else None
    files = sorted({folder / name for name in listed.values()} if listed else _weights(folder))
    if not files:
        raise ConversionError(
            f"{folder} has no model*.safetensors; give the folder of the model's MLX files"
        )
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise ConversionError(
                    f"{file}: tensor {tensor.name} is also in {tensors[tensor.name].file.name}; "
                    "remove the file that does not belong to the model"
                )
            tensors[tensor.name] = tensor
    if listed is not None:
        _compare(index, listed, tensors)
    return tensors


def read_header(file: Path) -> Iterator[StoredTensor]:
    """The tensors of one file, bounds checked before anything is believed.

    Raises ConversionError for what is no safetensors file or does not fit into this one.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or not 2 <= length <= min(HEADER_LIMIT, size - LENGTH_BYTES):
                raise ConversionError(
                    f"{file}: its header claims {length} bytes, the file has {size} (and a header "
                    f"at most {HEADER_LIMIT}); it is truncated or no safetensors file: {AGAIN}"
                )
            header = json.loads(stream.read(length), object_pairs_hook=_unique)
    except OSError as error:
        raise ConversionError(f"{file}: {error.strerror}; {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{file}: its header is not valid JSON ({error}); {AGAIN}") from None
    if not isinstance(header, dict):
        raise ConversionError(f"{file}: its header is no JSON object; {AGAIN}")
    header.pop("__metadata__", None)
    data = LENGTH_BYTES + length
    end = data
    described = [_described(file, name, entry, data) for name, entry in header.items()]
    for tensor in sorted(described, key=lambda tensor: tensor.offset):
        if tensor.offset != end:
            raise ConversionError(
                f"{file}: tensor {tensor.name} begins at byte {tensor.offset}, the one before it "
                f"ends at {end}: they overlap or leave a gap; {AGAIN}"
            )
        end += tensor.nbytes
    if end != size:
        raise ConversionError(f"{file} has {size} bytes, its tensors end at {end}; {AGAIN}")
    yield from described


def _described(file: Path, name: str, entry: Any, data: int) -> StoredTensor:
    where = f"{file}: tensor {name}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ConversionError(f"{where}: its entry is {str(entry)[:100]}; {AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ConversionError(
            f"{where} has dtype {dtype}; {', '.join(DTYPES)} can be converted: use the MLX "
            "repository of the model in its affine 8-bit or 4-bit form"
        )
    if not _naturals(shape) or not 1 <= len(shape) <= DIMENSIONS_LIMIT:
        raise ConversionError(f"{where} has shape {str(shape)[:100]}; {AGAIN}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise ConversionError(f"{where} has data_offsets {str(offsets)[:100]}; {AGAIN}")
    tensor = StoredTensor(name, file, dtype, tuple(shape), data + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise ConversionError(
            f"{where}: {dtype} {shape} takes {tensor.nbytes} bytes, data_offsets {offsets} give "
            f"{offsets[1] - offsets[0]}; {AGAIN}"
        )
    return tensor


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _weights(folder: Path) -> set[Path]:
    return set(folder.glob("model*.safetensors"))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to file name."""
    try:
        listed = json.loads(index.read_bytes())["weight_map"]
        plain = all(name == Path(name).name for name in listed.values())
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        listed, plain = {}, False
    if not plain:
        raise ConversionError(f"{index}: weight_map is no table of file names; {AGAIN}")
    named: dict[str, str] = listed
    return named


def _compare(index: Path, listed: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    for name in sorted(listed.keys() | tensors.keys()):
        found = tensors[name].file.name if name in tensors else "no file"
        if listed.get(name, "no file") != found:
            raise ConversionError(
                f"{index}: tensor {name} should be in {listed.get(name, 'no file')}, it is in "
                f"{found}; fetch the index and all shards of the same revision again"
            )
