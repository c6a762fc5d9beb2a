"""A GGUF of exactly the 24B model's shape with random weights: for memory and speed as good as it.

Blocks are random in the quantized format itself; their scales are such that weights have about the
size that trained ones have, so that nothing overflows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, TokenType
from gguf.quants import quant_shape_to_byte_shape

SEED = 1
POOL_BYTES = 16 * 2**20  # random bytes that are repeated: neither memory nor speed sees it
DEVIATION = 0.02  # of the weights, as in trained models

# V7-Tekken (the base family's model card): no spaces after the tags.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ message['content'] }}[/SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[INST]{{ message['content'] }}[/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
CONTROL = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"}
CONTROL |= {11: "<pad>", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]"}
CONTROL_TOKENS = 1000  # Tekken reserves as many


@dataclass(frozen=True)
class Shape:
    """Of a llama model; the default is Vistral-24B's, by its config.json."""

    layers: int = 40
    hidden: int = 5120
    feed_forward: int = 32768
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 131072
    context: int = 32768

    @property
    def kv_bytes_per_token(self) -> int:
        """In f16."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


# What llama.cpp's quantizer makes of a model with this many heads to a KV head: a better type for
# the output, the values and the first eighth of the down projections (llama-quant.cpp).
BASE = {"IQ4_XS": Type.IQ4_XS, "Q4_K_S": Type.Q4_K}
# Bytes of a block's scale fields and what one unit of a scale is worth, from the formats' layouts.
SCALES = {
    # d; six-bit scales around zero times a table of -127 … 113
    Type.IQ4_XS: ([(0, DEVIATION / 1250)], 136),
    # d and dmin; a six-bit scale times 0 … 15, less a six-bit minimum
    Type.Q4_K: ([(0, DEVIATION / 256), (2, 7.5 * DEVIATION / 256)], 144),
    Type.Q5_K: ([(0, DEVIATION / 515), (2, 15.5 * DEVIATION / 515)], 176),
    # d at the end; an eight-bit scale times -32 … 31
    Type.Q6_K: ([(208, DEVIATION / 1350)], 210),
}


def write(path: Path, kind: str, shape: Shape = Shape()) -> None:
    """Writes the file under another name and renames it. Raises click.ClickException: no room."""
    part = path.with_suffix(".part")
    tensors = list(_tensors(BASE[kind], shape))
    total = sum(_size(dimensions, type_) for _, dimensions, type_ in tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if total > free:
        raise click.ClickException(
            f"{path} takes {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some, or set "
            "VISTRAL_CACHE to a folder of a larger disk"
        )
    writer = GGUFWriter(part, "llama")
    _metadata(writer, kind, shape)
    for name, dimensions, type_ in tensors:
        if type_ == Type.F32:
            writer.add_tensor_info(name, dimensions, np.dtype(np.float32), _size(dimensions, type_))
        else:
            stored = quant_shape_to_byte_shape(dimensions, type_)
            writer.add_tensor_info(
                name, stored, np.dtype(np.uint8), _size(dimensions, type_), raw_dtype=type_
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pools = {type_: _pool(type_) for type_ in SCALES}
    with click.progressbar(tensors, label=path.name, show_eta=False) as shown:
        for _, dimensions, type_ in shown:
            if type_ == Type.F32:
                writer.write_tensor_data(np.ones(dimensions, dtype=np.float32))
            else:
                size = _size(dimensions, type_)
                writer.write_tensor_data(np.resize(pools[type_], size))
    writer.close()
    part.rename(path)


def _tensors(base: Type, shape: Shape) -> Iterator[tuple[str, tuple[int, ...], Type]]:
    """Names, dimensions (rows first) and types."""
    queries, values = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", (shape.vocabulary, shape.hidden), base
    yield "output_norm.weight", (shape.hidden,), Type.F32
    yield "output.weight", (shape.vocabulary, shape.hidden), Type.Q6_K
    for layer in range(shape.layers):
        # IQ4_XS gives all values the better type, Q4_K_S those of the first four layers.
        better_values = base == Type.IQ4_XS or layer < 4
        better_down = layer < shape.layers // 8
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (shape.hidden,), Type.F32
        yield f"{block}.attn_q.weight", (queries, shape.hidden), base
        yield f"{block}.attn_k.weight", (values, shape.hidden), base
        yield (
            f"{block}.attn_v.weight",
            (values, shape.hidden),
            Type.Q5_K if better_values else base,
        )
        yield f"{block}.attn_output.weight", (shape.hidden, queries), base
        yield f"{block}.ffn_norm.weight", (shape.hidden,), Type.F32
        yield f"{block}.ffn_gate.weight", (shape.feed_forward, shape.hidden), base
        yield f"{block}.ffn_up.weight", (shape.feed_forward, shape.hidden), base
        yield (
            f"{block}.ffn_down.weight",
            (shape.hidden, shape.feed_forward),
            Type.Q5_K if better_down else base,
        )


def _size(dimensions: tuple[int, ...], type_: Type) -> int:
    if type_ == Type.F32:
        return int(np.prod(dimensions)) * 4
    return int(np.prod(quant_shape_to_byte_shape(dimensions, type_)))


def _pool(type_: Type) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Random blocks, with scales that make weights of a sensible size."""
    scales, block = SCALES[type_]
    blocks = np.random.default_rng(SEED).integers(
        0, 256, (POOL_BYTES // block, block), dtype=np.uint8
    )
    for offset, value in scales:
        blocks[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)
    return blocks.reshape(-1)


def _metadata(writer: GGUFWriter, kind: str, shape: Shape) -> None:
    writer.add_name(f"synthetic {kind}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(1e8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    tokens, types = _vocabulary(shape.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("tekken")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["Ġ Ð", "Ġ Ñ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(11)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def _vocabulary(size: int) -> tuple[list[str], list[int]]:
    """Control tokens, the bytes in GPT-2's letters, two merges, and words without a merge."""
    tokens = [CONTROL.get(at, f"<SPECIAL_{at}>") for at in range(CONTROL_TOKENS)]
    types = [int(TokenType.CONTROL)] * CONTROL_TOKENS
    plain = [*_byte_letters(), "ĠÐ", "ĠÑ"]
    plain += [f"Ġword{at}" for at in range(size - CONTROL_TOKENS - len(plain))]
    return tokens + plain, types + [int(TokenType.NORMAL)] * len(plain)


def _byte_letters() -> list[str]:
    """GPT-2's printable letter for each byte (bytes_to_unicode)."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (at for at in range(256) if at not in own)
    moved = {byte: 256 + number for number, byte in enumerate(others)}
    return [chr(moved.get(byte, byte)) for byte in range(256)]
