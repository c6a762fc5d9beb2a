"""Tensors of the 24B model's size take no more memory than small ones."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conversion import mlx_files

LIMIT = 1_500_000_000  # bytes, as promised
VOCABULARY, HIDDEN, WIDE, QUERIES, VALUES = 131072, 5120, 32768, 4096, 1024


@pytest.mark.slow
@pytest.mark.requirement("3.5")
def test_one_layer_of_the_24b_model_and_its_vocabulary(tmp_path: Path) -> None:
    folder = tmp_path / "mlx"
    folder.mkdir()
    tensors = _tensors()
    _write(folder / "model.safetensors", tensors)
    config = mlx_files.CONFIG | {
        "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": 1,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "quantization": {"bits": 8, "group_size": 64},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    mlx_files.write_tokenizer(folder)
    _grow_vocabulary(folder / "tokenizer.json")
    made = tmp_path / "x.gguf"
    command = [sys.executable, "-m", "vistrald", "convert", folder, made, "--type=Q8_0"]
    child = subprocess.Popen([*command, "--json"], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    made.unlink()  # 1.4 GB, which pytest would keep
    assert status == 0
    assert used.ru_maxrss * 1024 < LIMIT
    # The vocabulary's tensor alone would have filled it: 131072 x 5120 values in float32.
    assert VOCABULARY * HIDDEN * 4 > LIMIT


def _tensors() -> dict[str, tuple[str, list[int]]]:
    """Safetensors' dtype and shape by name."""
    layer = {
        "self_attn.q_proj": (QUERIES, HIDDEN),
        "self_attn.k_proj": (VALUES, HIDDEN),
        "self_attn.v_proj": (VALUES, HIDDEN),
        "self_attn.o_proj": (HIDDEN, QUERIES),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    modules = {f"model.layers.0.{name}": shape for name, shape in layer.items()}
    modules["model.embed_tokens"] = (VOCABULARY, HIDDEN)
    tensors = {}
    for name, (rows, columns) in modules.items():
        tensors[f"{name}.weight"] = "U32", [rows, columns // 4]
        tensors[f"{name}.scales"] = tensors[f"{name}.biases"] = "BF16", [rows, columns // 64]
    for name in ("model.norm", "model.layers.0.input_layernorm"):
        tensors[f"{name}.weight"] = "BF16", [HIDDEN]
    tensors["model.layers.0.post_attention_layernorm.weight"] = "BF16", [HIDDEN]
    return tensors


def _write(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A file with holes: every value is zero, and it takes no disk."""
    header = {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = {"U32": 4, "BF16": 2}[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def _grow_vocabulary(file: Path) -> None:
    """Words, each with two merges, to Tekken's number of tokens."""
    tokenizer = json.loads(file.read_text())
    model = tokenizer["model"]
    words = [f"Ġword{at}" for at in range(len(model["vocab"]), VOCABULARY)]
    model["vocab"] |= {word: at for at, word in enumerate(words, len(model["vocab"]))}
    model["merges"] += [f"{word[:half]} {word[half:]}" for word in words for half in (2, 3)]
    file.write_text(json.dumps(tokenizer))
