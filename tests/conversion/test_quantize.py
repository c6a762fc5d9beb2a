"""libllama's quantizer, run as the command runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from tests.conversion import mlx_files
from tests.daemon.helpers import wait_until
from vistrald.cli import main
from vistrald.conversion.convert import convert, plan
from vistrald.conversion.destination import part_of
from vistrald.conversion.quantize import FILE_TYPES
from vistrald.conversion.quantizer import read_imatrix
from vistrald.engine import llama
from vistrald.settings import EngineSection

pytestmark = pytest.mark.requirement("3.5")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model in both types."""
    home = tmp_path_factory.mktemp("sources")
    folder = mlx_files.model().write(home / "mlx")
    files = {kind: home / f"{kind}.gguf" for kind in ("F16", "Q8_0")}
    convert(plan(folder, "F16"), files["F16"], "tiny")
    convert(plan(folder, "Q8_0"), files["Q8_0"], "tiny")
    return files


def run(source: Path, dest: Path, kind: str, *options: str) -> dict[str, Any]:
    command = ["quantize", str(source), str(dest), "--type", kind, "--json", "--threads", "1"]
    result = CliRunner().invoke(main, [*command, *options])
    report: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code == 0) is report["ok"]
    return report


def types(file: Path) -> Counter[str]:
    return Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors)


@pytest.mark.parametrize("source", ["F16", "Q8_0"])
def test_a_smaller_file_that_loads_and_keeps_its_keys(sources, source, tmp_path):
    file = tmp_path / "small.gguf"
    report = run(sources[source], file, "IQ4_XS")
    assert report["size"] == file.stat().st_size < sources["Q8_0"].stat().st_size
    assert report["size"] <= report["needed_bytes"]
    assert types(file)["IQ4_XS"] > 5
    before, after = (GGUFReader(each).fields for each in (sources[source], file))
    left = {"general.file_type", "GGUF.kv_count", "general.quantization_version"}
    for name in before.keys() - left:
        assert before[name].contents() == after[name].contents(), name
    llama.load_backend()
    model = llama.Model(file, EngineSection(context_tokens=256, threads=1))
    assert "IQ4_XS" in model.description
    model.close()


def test_a_file_that_is_small_already_is_refused_with_libllama_s_words(sources, tmp_path):
    run(sources["F16"], tmp_path / "q4.gguf", "Q4_0")
    report = run(tmp_path / "q4.gguf", tmp_path / "q3.gguf", "Q3_K_S")
    assert "requantizing from type q4_0 is disabled" in report["message"]
    assert list(tmp_path.glob("q3*")) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: content[:-5000], "file size is"),
        (lambda content: content[:2000], "is cut off"),
        (lambda content: b"PK" + content[2:], "convert the model to GGUF first"),
    ],
)
def test_a_damaged_source_is_refused_and_leaves_nothing(sources, tmp_path, damage, told):
    source = tmp_path / "damaged.gguf"
    source.write_bytes(damage(sources["F16"].read_bytes()))
    report = run(source, tmp_path / "small.gguf", "Q4_0")
    assert told in report["message"]
    assert list(tmp_path.glob("small*")) == []


def test_a_source_that_is_not_there(tmp_path):
    report = run(tmp_path / "none.gguf", tmp_path / "small.gguf", "Q4_0")
    assert "none.gguf: No such file" in report["message"]


def imatrix(file: Path, ending: str = ".in_sum2") -> Path:
    """As llama-imatrix writes it: some columns matter a hundred times more."""
    writer = GGUFWriter(file, "")
    writer.add_type("imatrix")
    for name, values in mlx_files.model().expected.items():
        if values.ndim > 1:
            sums = np.ones((1, values.shape[1]), dtype=np.float32)
            sums[:, ::7] = 500
            writer.add_tensor(name + ending, sums)
            writer.add_tensor(name + ".counts", np.array([[5]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_an_importance_matrix_makes_what_matters_more_exact(sources, tmp_path):
    matrix = imatrix(tmp_path / "imatrix.gguf")
    assert read_imatrix(matrix)["blk.0.attn_q.weight"][:8].tolist() == pytest.approx(
        [100, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 100]
    )
    run(sources["F16"], tmp_path / "plain.gguf", "IQ4_XS")
    run(sources["F16"], tmp_path / "weighed.gguf", "IQ4_XS", "--imatrix", str(matrix))
    assert errors(tmp_path / "weighed.gguf") < 0.8 * errors(tmp_path / "plain.gguf")


def errors(file: Path) -> float:
    """Mean square of what quantizing changed in the columns that matter."""
    name = "blk.0.ffn_up.weight"
    tensor = next(each for each in GGUFReader(file).tensors if each.name == name)
    changed = dequantize(tensor.data, tensor.tensor_type) - mlx_files.model().expected[name]
    return float(np.mean(changed[:, ::7] ** 2))


def test_what_is_no_importance_matrix_is_refused(sources, tmp_path):
    matrix = imatrix(tmp_path / "other.gguf", ending=".in_sum")
    report = run(sources["F16"], tmp_path / "s.gguf", "IQ4_XS", "--imatrix", str(matrix))
    assert "no tensor that ends with .in_sum2" in report["message"]
    matrix.write_bytes(b"legacy format")
    report = run(sources["F16"], tmp_path / "s.gguf", "IQ4_XS", "--imatrix", str(matrix))
    assert "llama-imatrix --in-file OLD" in report["message"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_model_and_no_process(tmp_path, end):
    """Of a model that takes several seconds."""
    folder = mlx_files.model(wide=16384).write(tmp_path / "mlx")
    source, dest = tmp_path / "F16.gguf", tmp_path / "small.gguf"
    convert(plan(folder, "F16"), source, "larger")
    # What is started in the background ignores Ctrl+C, and so would all that it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "vistrald"]
    command += ["quantize", source, dest, "--type=IQ4_XS"]
    child = subprocess.Popen([*command, "--threads=1"], stderr=subprocess.DEVNULL)
    wait_until(part_of(dest).exists)
    quantizer = psutil.Process(child.pid).children()[0]
    child.send_signal(end)
    child.wait(timeout=30)
    psutil.wait_procs([quantizer], timeout=30)
    assert not quantizer.is_running()
    assert not dest.exists()
    assert run(source, dest, "Q4_0")["ok"]
    assert not part_of(dest).exists()


def test_a_dry_run_writes_nothing_and_knows_the_size(sources, tmp_path):
    report = run(sources["F16"], tmp_path / "small.gguf", "Q4_K_S", "--dry-run")
    assert list(tmp_path.iterdir()) == []
    made = run(sources["F16"], tmp_path / "small.gguf", "Q4_K_S")
    assert 0 <= report["needed_bytes"] - made["size"] <= 64 * 2**20


def test_the_numbers_of_the_types_are_libllama_s():
    from llama_cpp import llama_cpp as C  # noqa: N812, PLC0415

    for name, number in FILE_TYPES.items():
        assert getattr(C, f"LLAMA_FTYPE_MOSTLY_{name}") == number
