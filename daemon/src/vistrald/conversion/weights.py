"""Which tensors the model must have, under which names, and their values as float32."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np

from vistrald.conversion.errors import ConversionError
from vistrald.conversion.model_config import ModelConfig, Quantization
from vistrald.conversion.safetensors import Array, StoredTensor

# GGUF's name to the module's name in the files; its tensor is <module>.weight.
MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
F16_MAX = 65504.0
FLOATS = ("F16", "BF16", "F32")
CHUNK_VALUES = 4 * 2**20  # values computed at a time, 16 MB of float32
REMEDY = "fetch config.json and the shards of one revision again"


class Wanted(NamedTuple):
    """A tensor that config.json asks for."""

    name: str  # GGUF's, without `.weight`
    module: str
    shape: tuple[int, ...]  # rows first
    head_rows: int = 0  # rows of a head that are put into llama.cpp's order, 0: none


@dataclass(frozen=True)
class Packed:
    """How values are made of packed ones: w = q * scale + bias, for each group of columns."""

    scales: StoredTensor
    biases: StoredTensor
    how: Quantization


@dataclass(frozen=True)
class Weight:
    """One tensor of the GGUF and what it is made from."""

    name: str
    shape: tuple[int, ...]
    values: StoredTensor
    packed: Packed | None
    head_rows: int

    def chunks(self) -> Iterator[Array]:
        """The rows in order, as float32, some MB at a time. Raises ConversionError."""
        rows = self.shape[0]
        step = max(1, CHUNK_VALUES // prod(self.shape[1:]))
        if self.head_rows:
            step = max(1, step // self.head_rows) * self.head_rows
        for start in range(0, rows, step):
            yield self._chunk(start, min(rows, start + step))

    def _chunk(self, start: int, end: int) -> Array:
        if self.packed:
            values = self._unpacked(self.packed, start, end)
        else:
            values = self.values.floats(start, end)
            self._check(values, start)
        if not self.head_rows:
            return values
        # MLX and Hugging Face turn a head's first half against its second, llama.cpp neighbours.
        halves = values.reshape(-1, 2, self.head_rows // 2, self.shape[1])
        return halves.swapaxes(1, 2).reshape(values.shape)

    def _unpacked(self, packed: Packed, start: int, end: int) -> Array:
        bits, group = packed.how.bits, packed.how.group_size
        scale, bias = packed.scales.floats(start, end), packed.biases.floats(start, end)
        self._check(abs(scale) * (2**bits - 1) + abs(bias), start)
        whole = self.values.rows(start, end).view(np.uint8)
        if bits == 4:  # the lower half of a byte comes first
            whole = np.stack((whole & 15, whole >> 4), axis=-1)
        values = whole.reshape(end - start, -1, group).astype(np.float32)
        values *= scale[..., None]
        values += bias[..., None]
        return values.reshape(end - start, *self.shape[1:])

    def _check(self, values: Array, start: int) -> None:
        largest = float(abs(values).max())
        if not largest <= F16_MAX:  # NaN is not either
            raise ConversionError(
                f"{self.values.file}: tensor {self.values.name} has values up to {largest} in the "
                f"rows from {start} on, float16 holds {F16_MAX}; {REMEDY}"
            )


def map_weights(config: ModelConfig, stored: dict[str, StoredTensor]) -> list[Weight]:
    """Every tensor of the model. Raises ConversionError: one missing, too many or misshapen."""
    left = dict(stored)
    weights = [_weight(config, left, wanted) for wanted in _wanted(config, stored)]
    if left:
        first = left[min(left)]
        raise ConversionError(
            f"{first.file}: tensor {first.name} {first.dtype} {list(first.shape)} and "
            f"{len(left) - 1} more belong to no part of {config.architectures[0]} as config.json "
            "describes it; an adapter or another model's file must be merged or removed first"
        )
    return weights


def _wanted(config: ModelConfig, stored: dict[str, StoredTensor]) -> Iterator[Wanted]:
    hidden, wide = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    values = config.num_key_value_heads * config.head_dim
    tied = config.tie_word_embeddings
    if tied is None:
        tied = "lm_head.weight" not in stored
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (config.vocab_size, hidden),
        "output_norm": (hidden,),
        "output": (config.vocab_size, hidden),
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (values, hidden),
        "attn_v": (values, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (wide, hidden),
        "ffn_up": (wide, hidden),
        "ffn_down": (hidden, wide),
    }
    for name, module in MODULES.items():
        if not (tied and name == "output"):
            yield Wanted(name, module, shapes[name])
    for layer in range(config.num_hidden_layers):
        for name, module in LAYER_MODULES.items():
            head_rows = config.head_dim if name in {"attn_q", "attn_k"} else 0
            path = f"model.layers.{layer}.{module}"
            yield Wanted(f"blk.{layer}.{name}", path, shapes[name], head_rows)


def _weight(config: ModelConfig, left: dict[str, StoredTensor], wanted: Wanted) -> Weight:
    """Takes the module's parts out of `left`."""
    _, module, shape, head_rows = wanted
    name = f"{wanted.name}.weight"
    values = left.pop(f"{module}.weight", None)
    if values is None:
        alike = sorted(key for key in left if re.search(rf"\b{re.escape(module)}\.", key))
        raise ConversionError(
            f"tensor {module}.weight, which config.json asks for, is in none of the files"
            f"{f' (but {alike[0]} is)' if alike else ''}; a shard is missing: {REMEDY}"
        )
    scales = left.pop(f"{module}.scales", None)
    if scales is None:
        if values.dtype == "U32":
            raise ConversionError(
                f"{values.file}: tensor {values.name} is packed (U32), {module}.scales is in none "
                f"of the files; {REMEDY}"
            )
        _compare(values, shape)
        return Weight(name, shape, values, None, head_rows)
    packing = config.packing(module)
    biases = left.pop(f"{module}.biases", None)
    if packing is None or biases is None:
        raise ConversionError(
            f"{scales.file}: there is a tensor {scales.name}, but "
            f"{'config.json says that it is not quantized' if packing is None else 'no .biases'}; "
            f"{REMEDY}"
        )
    packed = Packed(scales, biases, packing)
    _compare_packed(values, packed, shape)
    return Weight(name, shape, values, packed, head_rows)


def _compare_packed(values: StoredTensor, packed: Packed, shape: tuple[int, ...]) -> None:
    bits, group = packed.how.bits, packed.how.group_size
    for part, dtypes in ((values, ("U32",)), (packed.scales, FLOATS), (packed.biases, FLOATS)):
        if part.dtype not in dtypes:
            raise ConversionError(
                f"{part.file}: tensor {part.name} is {part.dtype}, expected "
                f"{' or '.join(dtypes)}; {REMEDY}"
            )
    rows, columns = shape[0], shape[-1]
    if len(shape) != 2 or columns % group:
        raise ConversionError(
            f"{values.file}: tensor {values.name} should be {list(shape)}, which groups of "
            f"{group} do not divide; {REMEDY}"
        )
    how = f" at {bits} bits in groups of {group}"
    _compare(values, (rows, columns * bits // 32), how)
    _compare(packed.scales, (rows, columns // group), how)
    _compare(packed.biases, (rows, columns // group), how)


def _compare(tensor: StoredTensor, shape: tuple[int, ...], how: str = "") -> None:
    if tensor.shape != shape:
        raise ConversionError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}, config.json "
            f"gives {list(shape)}{how}; {REMEDY}"
        )
