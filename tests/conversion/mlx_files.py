"""A tiny model in MLX's format, written by hand, and what its tensors must come to.

Nothing here uses the converter: the format is written out and the expected values are computed the
plain way, row by row.
"""

from __future__ import annotations

import json
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[INST]{{ message['content'] }}[/INST]{% endfor %}"
)
SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 11: "<pad>"}
HIDDEN, WIDE, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 256, 512, 4, 2, 32, 2
TOKENS, VOCABULARY = 12 + 256 + 2, 288
CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,  # not hidden / heads, as in the real model
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e8,
    "tie_word_embeddings": False,
}
Array = np.ndarray[Any, np.dtype[Any]]
Tensor = tuple[str, Array]  # safetensors' dtype, and the bits


def modules(wide: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Module -> shape, GGUF's name."""
    queries, values = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    found: dict[str, tuple[tuple[int, ...], str]] = {
        "model.embed_tokens": ((VOCABULARY, HIDDEN), "token_embd"),
        "model.norm": ((HIDDEN,), "output_norm"),
        "lm_head": ((VOCABULARY, HIDDEN), "output"),
    }
    for at in range(LAYERS):
        layer, block = f"model.layers.{at}", f"blk.{at}"
        found |= {
            f"{layer}.input_layernorm": ((HIDDEN,), f"{block}.attn_norm"),
            f"{layer}.self_attn.q_proj": ((queries, HIDDEN), f"{block}.attn_q"),
            f"{layer}.self_attn.k_proj": ((values, HIDDEN), f"{block}.attn_k"),
            f"{layer}.self_attn.v_proj": ((values, HIDDEN), f"{block}.attn_v"),
            f"{layer}.self_attn.o_proj": ((HIDDEN, queries), f"{block}.attn_output"),
            f"{layer}.post_attention_layernorm": ((HIDDEN,), f"{block}.ffn_norm"),
            f"{layer}.mlp.gate_proj": ((wide, HIDDEN), f"{block}.ffn_gate"),
            f"{layer}.mlp.up_proj": ((wide, HIDDEN), f"{block}.ffn_up"),
            f"{layer}.mlp.down_proj": ((HIDDEN, wide), f"{block}.ffn_down"),
        }
    return found


@dataclass
class MlxModel:
    """Tensors as they are to be written, and by GGUF's names the values that they stand for."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    expected: dict[str, Array] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, shards: int = 1) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        write_tokenizer(folder)
        names = sorted(self.tensors, key=lambda name: name[::-1])  # in no useful order
        files = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: self.tensors[name] for name in names[shard::shards]}
            write_safetensors(folder / file, part)
            files |= dict.fromkeys(part, file)
        if shards > 1:
            index = {"metadata": {}, "weight_map": files}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder


def model(
    bits: int = 8,
    group: int = 64,
    parts: str = "BF16",
    exceptions: dict[str, Any] | None = None,
    wide: int = WIDE,
) -> MlxModel:
    """Random weights. `exceptions` are config.json's, by module."""
    rng = np.random.default_rng(7)
    quantization: dict[str, Any] = {"bits": bits, "group_size": group} | (exceptions or {})
    changes = {"quantization": quantization, "intermediate_size": wide}
    made = MlxModel(config=CONFIG | changes)
    for module, (shape, name) in modules(wide).items():
        how = quantization.get(module, quantization)
        if len(shape) == 1 or not how:
            values = (1 + rng.normal(size=shape) / 8).astype(np.float32)
            stored, values = floats(parts, values)
            made.tensors[f"{module}.weight"] = stored
        else:
            packed, values = _packed((shape[0], shape[1]), how, parts, rng)
            made.tensors |= {f"{module}.{part}": tensor for part, tensor in packed.items()}
        if module.endswith(("q_proj", "k_proj")):
            values = interleaved(values)
        made.expected[f"{name}.weight"] = values
    return made


def _packed(
    shape: tuple[int, int], how: dict[str, int], parts: str, rng: np.random.Generator
) -> tuple[dict[str, Tensor], Array]:
    """A module's parts, and what they stand for."""
    bits, group = how["bits"], how["group_size"]
    rows, columns = shape
    groups = (rows, columns // group)
    codes = rng.integers(0, 2**bits, (rows, columns), dtype=np.uint32)
    # Half of the scales are negative, as MLX makes them.
    scales, scale = floats(parts, (rng.choice((-1, 1), groups) * 0.3 / 2**bits).astype(np.float32))
    biases, bias = floats(parts, (rng.normal(size=groups) / 50).astype(np.float32))
    per_word = 32 // bits
    words = np.zeros((rows, columns // per_word), dtype=np.uint32)
    for at in range(per_word):
        words |= codes[:, at::per_word] << np.uint32(at * bits)
    packed: dict[str, Tensor] = {"weight": ("U32", words), "scales": scales, "biases": biases}
    spread = np.repeat(scale, group, axis=1), np.repeat(bias, group, axis=1)
    return packed, codes.astype(np.float32) * spread[0] + spread[1]


def floats(dtype: str, values: Array) -> tuple[Tensor, Array]:
    """As stored, and what that stands for."""
    if dtype == "BF16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        return (dtype, bits), (bits.astype(np.uint32) << 16).view(np.float32)
    stored = values.astype({"F16": np.float16, "F32": np.float32}[dtype])
    return (dtype, stored), stored.astype(np.float32)


def interleaved(values: Array) -> Array:
    """Rows of each head: the first half's and the second half's by turns."""
    order = [
        head * HEAD_DIM + half * HEAD_DIM // 2 + at
        for head in range(len(values) // HEAD_DIM)
        for at in range(HEAD_DIM // 2)
        for half in range(2)
    ]
    return values[order]


def write_safetensors(file: Path, tensors: dict[str, Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, (dtype, values) in tensors.items():
        offsets = [offset, offset + values.nbytes]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        offset += values.nbytes
    write_raw(file, header, b"".join(values.tobytes() for _, values in tensors.values()))


def write_raw(file: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_tokenizer(folder: Path, pattern: str = TEKKEN) -> None:
    """Control tokens, the bytes in GPT-2's letters, and two merges for Cyrillic."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in own}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(own)))
    control = [SPECIAL.get(at, f"<SPECIAL_{at}>") for at in range(12)]
    plain = [letters[byte] for byte in range(256)] + ["ĠÐ", letters[0xD0] + letters[0xBE]]
    vocabulary = {token: at for at, token in enumerate(control + plain)}
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ]
    tokenizer = {
        "added_tokens": [
            {"id": at, "content": token, "special": True} for at, token in enumerate(control)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["Ġ Ð", f"Ð {letters[0xBE]}"]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"unk_token": "<unk>", "chat_template": TEMPLATE})
    )


if __name__ == "__main__":
    model().write(Path(sys.argv[1]))
