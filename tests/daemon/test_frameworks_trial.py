"""One GGUF's weights in other forms, and frameworks that are really installed, loaded and asked."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from vistrald.frameworks import weights


def frameworks(model: Path, *options: str) -> Any:
    command = [sys.executable, "-m", "vistrald", "frameworks", "--model", str(model), "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_the_small_model_is_counted(model_path: Path) -> None:
    counted = weights.inspect(model_path)
    assert counted.file_type == "Q4_1"
    assert counted.parameters == 134_515_008
    assert counted.multiplied == counted.parameters - 61 * 576  # norms; embeddings are tied


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(b"wrong" * 100)
    with pytest.raises(weights.WeightsError, match=r"wrong\.gguf is not a GGUF"):
        weights.inspect(path)
    report = frameworks(path, "--framework", "llama.cpp")
    assert not report["ok"]


@pytest.mark.slow
def test_q8_0_holds_the_same_weights(model_path: Path, tmp_path: Path) -> None:
    weights.write_q8_0(model_path, tmp_path / "q8.gguf")
    given = {each.name: each for each in GGUFReader(model_path).tensors}
    made = GGUFReader(tmp_path / "q8.gguf")
    assert {each.name for each in made.tensors} == set(given)
    for tensor in made.tensors:
        first = given[tensor.name]
        exact = dequantize(first.data, first.tensor_type)
        step = np.abs(exact).max() / 127
        assert np.abs(dequantize(tensor.data, tensor.tensor_type) - exact).max() <= step


@pytest.mark.slow
@pytest.mark.requirement("3.1")
@pytest.mark.requirement("3.4")
def test_llama_and_mlx_are_tried(model_path: Path, tmp_path: Path) -> None:
    """Installs MLX, and finds it to give the same answer much more slowly."""
    written = tmp_path / "report.md"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    report = frameworks(
        model_path, "--framework", "llama.cpp", "--framework", "mlx", "--quick",
        "--report", str(written), "--scratch", str(scratch),
    )  # fmt: skip
    llama, mlx = report["survey"]["findings"]
    assert llama["obstacle"] is None, llama["obstacle"]
    assert mlx["obstacle"] is None, mlx["obstacle"]
    assert "Paris" in llama["answer"]
    # Wrongly ordered rows of queries and keys would give another answer, if any.
    first = llama["small"]["variants"]["Q8_0"]["answer"][:8]
    assert mlx["small"]["variants"]["8-bit, float32"]["answer"][:8] == first
    # A busy machine may find llama.cpp too slow as well; MLX is behind it by more than noise makes.
    verdicts = {each["framework"]: each for each in report["verdicts"]}
    assert verdicts["mlx"]["reasons"] == ["too_slow"]
    assert report["recommended"] in {"llama.cpp", None}
    decode = {name: each["rates_24b"]["decode"]["likely"] for name, each in verdicts.items()}
    assert decode["llama.cpp"] > 5 * decode["mlx"]
    assert "**Работает, но не годится.**" in written.read_text()
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_a_download_beyond_the_limit_is_sized_and_refused(model_path: Path) -> None:
    report = frameworks(model_path, "--framework", "mlx", "--quick", "--download-limit-gb", "0.01")
    (mlx,) = report["survey"]["findings"]
    assert mlx["obstacle"]["kind"] == "download"
    assert mlx["download_bytes"] > 50_000_000
    assert mlx["small"] is None
