"""Against the real thing: what mlx-lm quantized and computes, and what libllama makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as C  # noqa: N812 (the C API, named as such)

from vistrald.conversion.convert import convert, plan
from vistrald.engine import llama
from vistrald.settings import EngineSection

pytestmark = [pytest.mark.slow, pytest.mark.requirement("3.5")]

ROOT = Path(__file__).resolve().parents[2]
SEQUENCES, LENGTH = 8, 64
# Logits between which float16's rounding may decide: it moves them by up to 0.008.
TIE = 0.02
SETTINGS = EngineSection(
    context_tokens=256, parallel_sequences=4, batch_tokens=128, draft_tokens=60, threads=1
)


@pytest.fixture(scope="module", params=["q8", "q4"])
def reference(request, oracle, mlx_models) -> tuple[Path, Any, Any]:
    """MLX files, sequences of tokens, and MLX's own logits of them in float32."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(19, 1900, (SEQUENCES, LENGTH)).tolist()
    (mlx_models / "tokens.json").write_text(json.dumps(tokens))
    oracle("logits", mlx_models / request.param, mlx_models / "tokens.json", mlx_models / "l.npy")
    return mlx_models / request.param, tokens, np.load(mlx_models / "l.npy")


def test_f16_answers_as_mlx_does(reference, tmp_path):
    source, tokens, expected = reference
    found = logits(made(source, "F16", tmp_path), tokens)
    best = np.sort(expected, axis=-1)
    decided = best[..., -1] - best[..., -2] > TIE
    assert decided.mean() > 0.95
    agreed = found.argmax(-1) == expected.argmax(-1)
    assert agreed[decided].all()
    assert abs(found - expected).max() < TIE


def test_q8_0_answers_as_mlx_does_in_97_of_100(reference, tmp_path):
    source, tokens, expected = reference
    found = logits(made(source, "Q8_0", tmp_path), tokens)
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.97


def test_russian_is_tokenized_as_the_model_was_taught(mlx_models, encode, tmp_path):
    lines = [
        *(ROOT / "bench/texts/ru.toml").read_text().splitlines(),
        "ст. 158 УК РФ: 2 500 руб.\n\n  «Кража» — тайное хищение…",
        "УГОЛОВНЫЙ Кодекс РоссийскойФедерации ёЁ іҐ",
        "<s>[INST] не управляющий текст [/INST]",
    ]
    vocabulary = open_model(made(mlx_models / "q8", "F16", tmp_path)).vocabulary
    for line, expected in zip(lines, encode(lines), strict=True):
        special = "[INST]" in line
        assert vocabulary.tokenize(line, special=special) == expected, line


def made(source: Path, kind: Any, folder: Path) -> Path:
    file = folder / f"{kind}.gguf"
    convert(plan(source, kind), file, "oracle")
    return file


def open_model(file: Path) -> llama.Model:
    llama.load_backend()
    return llama.Model(file, SETTINGS)


def logits(file: Path, tokens: list[list[int]]) -> Any:
    model = open_model(file)
    context = llama.Context(model, SETTINGS, threads=1)
    found = []
    for sequence in tokens:
        context.forget(0)
        context.decode([llama.Entry(token, at, 0, True) for at, token in enumerate(sequence)])
        rows = (C.llama_get_logits_ith(context.handle, at) for at in range(len(sequence)))
        found.append([np.ctypeslib.as_array(row, (model.vocabulary.size,)).copy() for row in rows])
    context.close()
    model.close()
    return np.array(found)
