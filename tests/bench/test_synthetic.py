"""The synthetic model is one that libllama loads, of the shape and types that were asked for."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from bench.synthetic import BASE, Shape, write
from vistrald.engine import llama
from vistrald.settings import EngineSection

# As Vistral's, a head is wider than hidden / heads; rows are multiples of a block of 256.
SMALL = Shape(
    layers=8, hidden=512, feed_forward=1024, heads=8, kv_heads=2, head_dim=128, vocabulary=2048
)


@pytest.mark.parametrize("kind", sorted(BASE))
def test_a_synthetic_model_computes_finite_logits(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    write(path, kind, SMALL)
    llama.load_backend()
    settings = EngineSection(context_tokens=256)
    model = llama.Model(path, settings)
    context = llama.Context(model, settings, threads=1)
    ids = [model.vocabulary.bos, *model.vocabulary.tokenize("Статья 158", special=False)]
    entries = [llama.Entry(token, at, 0, True) for at, token in enumerate(ids)]
    assert context.decode(entries) is llama.Decoded.DONE
    rows = [
        np.ctypeslib.as_array(llama.C.llama_get_logits_ith(context.handle, at), (SMALL.vocabulary,))
        for at in range(len(entries))
    ]
    assert all(np.isfinite(row).all() for row in rows)
    assert all(0.01 < row.std() < 100 for row in rows)  # neither nothing nor an overflow
    context.close()
    model.close()


def test_types_and_sizes_are_those_of_llama_cpps_quantizer(tmp_path: Path) -> None:
    """Of a model with so many heads to a KV head (llama-quant.cpp)."""
    path = tmp_path / "model.gguf"
    write(path, "IQ4_XS", SMALL)
    types = {each.name: each.tensor_type.name for each in GGUFReader(path).tensors}
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == types["blk.5.ffn_gate.weight"] == "IQ4_XS"
    assert types["blk.7.attn_v.weight"] == "Q5_K"
    assert [types[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1)] == ["Q5_K", "IQ4_XS"]
    assert not list(tmp_path.glob("*.part"))
