"""MLX files, written by hand, to GGUF: every value, every key, and everything that is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from gguf.quants import quantize

from tests.conversion import mlx_files
from vistrald.cli import main
from vistrald.conversion import destination
from vistrald.conversion.convert import convert, plan
from vistrald.conversion.errors import ConversionError
from vistrald.engine import llama
from vistrald.settings import EngineSection

pytestmark = pytest.mark.requirement("3.5")

Folder = Path
LAYER = "model.layers.1."


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return mlx_files.model().write(tmp_path / "mlx")


def converted(folder: Folder, kind: Any, template: Path | None = None) -> Path:
    file = folder.with_name(f"{kind}.gguf")
    convert(plan(folder, kind, template), file, "tiny")
    return file


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(file).tensors}


def keys(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


@pytest.mark.parametrize("parts", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("bits", "group"), [(8, 64), (8, 32), (4, 64), (4, 128)])
def test_every_value_is_what_the_format_says(tmp_path, bits, group, parts):
    model = mlx_files.model(bits, group, parts)
    found = tensors(converted(model.write(tmp_path / "mlx"), "F16"))
    assert found.keys() == model.expected.keys()
    for name, values in model.expected.items():
        type_ = np.float32 if values.ndim == 1 else np.float16
        assert found[name].data.dtype == type_
        assert np.array_equal(found[name].data, values.astype(type_)), name


@pytest.mark.parametrize("bits", [8, 4])
def test_q8_0_is_byte_for_byte_the_reference_quantizer_s(tmp_path, bits):
    model = mlx_files.model(bits)
    found = tensors(converted(model.write(tmp_path / "mlx"), "Q8_0"))
    for name, values in model.expected.items():
        type_ = GGMLQuantizationType.Q8_0 if values.ndim > 1 else GGMLQuantizationType.F32
        assert found[name].tensor_type == type_
        assert np.array_equal(found[name].data, quantize(values, type_)), name


def test_rows_computed_in_several_pieces_come_to_the_same(folder, monkeypatch):
    monkeypatch.setattr("vistrald.conversion.weights.CHUNK_VALUES", 5000)
    model = mlx_files.model()
    found = tensors(converted(folder, "F16"))
    for name, values in model.expected.items():
        assert np.array_equal(found[name].data, values.astype(found[name].data.dtype)), name


def test_shards_may_tear_a_tensor_s_parts_apart(tmp_path):
    model = mlx_files.model()
    whole = converted(model.write(tmp_path / "mlx"), "F16").read_bytes()
    folder = model.write(tmp_path / "shards", shards=5)
    (folder / "consolidated.safetensors").write_bytes(b"of no concern: the index does not name it")
    assert converted(folder, "Q8_0").exists()
    (tmp_path / "F16.gguf").rename(tmp_path / "whole.gguf")
    assert converted(folder, "F16").read_bytes() == whole


def test_modules_may_be_packed_otherwise_or_not_at_all(tmp_path):
    exceptions: dict[str, Any] = {
        f"{LAYER}mlp.down_proj": {"bits": 4, "group_size": 32},
        f"{LAYER}self_attn.q_proj": False,
        "lm_head": {"bits": 4, "group_size": 128, "mode": "affine"},
    }
    model = mlx_files.model(exceptions=exceptions)
    found = tensors(converted(model.write(tmp_path / "mlx"), "F16"))
    for name, values in model.expected.items():
        assert np.array_equal(found[name].data, values.astype(found[name].data.dtype)), name


def test_tied_embeddings_have_no_output_tensor(tmp_path):
    model = mlx_files.model()
    for part in ("weight", "scales", "biases"):
        del model.tensors[f"lm_head.{part}"]
    model.config["tie_word_embeddings"] = True
    assert "output.weight" not in tensors(converted(model.write(tmp_path / "mlx"), "F16"))


def test_every_key_that_llama_cpp_reads(folder):
    found = keys(converted(folder, "F16"))
    assert found["general.architecture"] == "llama"
    assert found["general.file_type"] == 1
    shape = {
        "llama.block_count": 2, "llama.context_length": 512, "llama.embedding_length": 256,
        "llama.feed_forward_length": 512, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 32,
        "llama.attention.value_length": 32, "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 1e8, "llama.vocab_size": 288,
    }  # fmt: skip
    assert {key: found[key] for key in shape} == shape
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    special = {"bos": 1, "eos": 2, "unknown": 0, "padding": 11}
    assert {name: found[f"tokenizer.ggml.{name}_token_id"] for name in special} == special
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "tekken")
    assert found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.merges"] == ["Ġ Ð", "Ð ¾"]
    assert found["tokenizer.chat_template"] == mlx_files.TEMPLATE
    types, tokens = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.tokens"]
    assert len(types) == len(tokens) == mlx_files.VOCABULARY
    assert types[:12] == [TokenType.CONTROL] * 12
    assert set(types[12 : mlx_files.TOKENS]) == {TokenType.NORMAL}
    assert tokens[mlx_files.TOKENS] == f"[PAD{mlx_files.TOKENS}]"
    assert set(types[mlx_files.TOKENS :]) == {TokenType.UNUSED}


def test_without_head_dim_it_is_hidden_by_heads(tmp_path):
    model = mlx_files.model()
    del model.config["head_dim"]
    model.config["num_attention_heads"], model.config["num_key_value_heads"] = 8, 4
    refused(model.write(tmp_path / "mlx"), ["q_proj.weight", "[128, 64]", "[256, 64]"])


def test_older_and_newer_names_of_the_rope_settings(tmp_path):
    model = mlx_files.model()
    del model.config["rope_theta"]
    model.config["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert keys(converted(model.write(tmp_path / "mlx"), "F16"))["llama.rope.freq_base"] == 5e5


def test_the_daemon_s_engine_loads_and_computes_it(folder):
    llama.load_backend()
    settings = EngineSection(context_tokens=256, batch_tokens=128, threads=1)
    model = llama.Model(converted(folder, "Q8_0"), settings)
    ids = model.vocabulary.tokenize("[INST] о[/INST]", special=True)
    assert (ids[0], ids[-1]) == (3, 4)
    assert b"".join(map(model.vocabulary.piece, ids[1:-1])).decode() == " о"
    assert model.chat_template == mlx_files.TEMPLATE
    context = llama.Context(model, settings, threads=1)
    entries = [llama.Entry(token, at, 0, at == len(ids) - 1) for at, token in enumerate(ids)]
    assert context.decode(entries) == llama.Decoded.DONE
    context.close()
    model.close()


def test_a_template_of_its_own_file_and_one_that_is_named(folder, tmp_path):
    (folder / "chat_template.jinja").write_text(mlx_files.TEMPLATE + "{# file #}")
    assert plan(folder, "F16").vocabulary.template.endswith("{# file #}")
    named = tmp_path / "named.jinja"
    named.write_text(mlx_files.TEMPLATE + "{# named #}")
    assert plan(folder, "F16", named).vocabulary.template.endswith("{# named #}")


def test_the_pattern_published_by_mistake_is_only_a_warning(folder):
    mlx_files.write_tokenizer(folder, pattern=r"\p{L}+|\s+")
    assert "pre_tokenizer" in plan(folder, "F16").vocabulary.warnings[0]


def edit(folder: Folder, file: str, **changes: Any) -> None:
    """None takes a key out."""
    content = json.loads((folder / file).read_text()) | changes
    left = {key: value for key, value in content.items() if value is not None}
    (folder / file).write_text(json.dumps(left))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, ["Qwen2ForCausalLM", "MistralForCausalLM"]),
        ({"hidden_size": 192}, ["model.embed_tokens.weight", "[288, 64]", "[288, 48]"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.input_layernorm.weight", "none of the files"]),
        ({"num_hidden_layers": 1}, ["model.layers.1.input_layernorm", "belong to no part"]),
        ({"head_dim": 16}, ["self_attn.q_proj.weight", "[128, 64]", "[64, 64]"]),
        ({"sliding_window": 4096}, ["sliding_window = 4096"]),
        ({"attention_bias": True}, ["attention_bias = True"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_type = linear"]),
        ({"rope_theta": None}, ["rope_theta"]),
        ({"vocab_size": 100}, ["model.embed_tokens.weight"]),
        ({"quantization": {"bits": 3, "group_size": 64}}, ["quantization.bits = 3"]),
        ({"quantization": {"bits": 8, "group_size": 64, "mode": "mxfp8"}}, ["mode = mxfp8"]),
        ({"quantization": {"bits": 4, "group_size": 64}}, ["at 4 bits in groups of 64"]),
        ({"quantization": None}, ["model.embed_tokens.scales", "not quantized"]),
        ({"tie_word_embeddings": True}, ["lm_head.biases", "belong to no part"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads = 3"]),
        ({"head_dim": None, "hidden_size": "wide"}, ["hidden_size = wide", "head_dim"]),
    ],
)
def test_a_config_that_does_not_fit_the_files_is_refused(folder, changes, told):
    edit(folder, "config.json", **changes)
    refused(folder, told)


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        (
            "model.layers.0.self_attn.q_proj.bias",
            np.zeros(128),
            ["belong to no part", "q_proj.bias"],
        ),
        ("lm_head.lora_a", np.zeros((8, 256)), ["lm_head.lora_a", "adapter"]),
        ("model.norm.weight", np.zeros(255), ["model.norm.weight", "[255]", "[256]"]),
        ("lm_head.weight", np.zeros((288, 64)), ["lm_head.weight is F32", "U32"]),
        ("model.norm.weight", np.full(256, np.nan), ["model.norm.weight", "nan"]),
        ("lm_head.scales", np.full((288, 4), 1e4), ["lm_head.weight", "65504"]),
    ],
)
def test_a_tensor_that_does_not_belong_or_fit_is_refused(tmp_path, name, tensor, told):
    model = mlx_files.model()
    model.tensors[name] = mlx_files.floats("F32", tensor.astype(np.float32))[0]
    refused(model.write(tmp_path / "mlx"), told)


@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_a_missing_tensor_is_named(tmp_path, part):
    model = mlx_files.model()
    del model.tensors[f"{LAYER}mlp.up_proj.{part}"]
    refused(model.write(tmp_path / "mlx"), [f"{LAYER}mlp.up_proj"])


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("tokenizer_config.json", {"chat_template": None}, ["no chat template", "--chat-template"]),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}, ["not valid Jinja"]),
        ("tokenizer_config.json", {"chat_template": "[INST]"}, ["leaves out messages[0]"]),
        ("tokenizer_config.json", {"eos_token": "<end>"}, ["eos_token is '<end>'"]),
        ("tokenizer_config.json", {"bos_token": None}, ["bos_token is None"]),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, ["model.type is Unigram"]),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 288}}}, ["288", "vocab_size"]),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 0}}}, ["model.merges"]),
        ("tokenizer.json", {"added_tokens": []}, ["[INST] is no control token"]),
        ("tokenizer.json", {"added_tokens": [3]}, ["not what a tokenizer writes"]),
    ],
)
def test_a_tokenizer_that_would_make_nonsense_is_refused(folder, file, changes, told):
    edit(folder, file, **changes)
    refused(folder, told)


def test_a_model_inside_another_is_recognised(tmp_path):
    model = mlx_files.model()
    model.tensors = {f"language_model.{name}": each for name, each in model.tensors.items()}
    refused(model.write(tmp_path / "mlx"), ["but language_model.model.embed_tokens.biases is"])


def test_a_config_that_is_no_table_is_refused(folder):
    (folder / "config.json").write_text("[1]")
    refused(folder, ["config.json: the file = [1]"])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_missing_and_broken_files_are_named(folder, file):
    (folder / file).write_text("{")
    refused(folder, [file, "not valid JSON"])
    (folder / file).unlink()
    refused(folder, [file, "No such file"])


def refused(folder: Folder, told: list[str]) -> None:
    with pytest.raises(ConversionError) as caught:
        converted(folder, "F16")
    for text in told:
        assert text in str(caught.value)
    assert list(folder.parent.glob("F16.gguf*")) == []


def test_a_killed_run_leaves_no_model_and_the_next_begins_anew(folder, tmp_path):
    whole = converted(folder, "F16").read_bytes()
    file = tmp_path / "killed.gguf"
    program = (
        "import os, pathlib, sys; from vistrald.conversion.convert import convert, plan\n"
        "source, file = map(pathlib.Path, sys.argv[1:])\n"
        "convert(plan(source, 'F16'), file, 'tiny', lambda _: os.kill(os.getpid(), 9))"
    )
    killed = subprocess.run([sys.executable, "-c", program, folder, file], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not file.exists()
    assert destination.part_of(file).exists()
    convert(plan(folder, "F16"), file, "tiny")
    assert file.read_bytes() == whole
    assert not destination.part_of(file).exists()


def test_a_disk_that_is_full_leaves_nothing(folder, tmp_path):
    """The kernel refuses to write beyond a limit of file size, as it does on a full disk."""
    command = [sys.executable, "-m", "vistrald", "convert", folder, tmp_path / "x.gguf"]
    limited = ["prlimit", "--fsize=200000", *map(str, command), "--type=F16", "--json"]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert "x.gguf.part" in report["message"]
    assert "nothing was kept" in report["message"]
    assert list(tmp_path.glob("x.gguf*")) == []


def test_a_disk_too_small_is_told_beforehand(folder, tmp_path):
    needed = plan(folder, "F16").needed_bytes
    with pytest.raises(ConversionError, match=r"takes 9000000000\.00 GB.*are free.*another one"):
        destination.check(tmp_path / "x.gguf", 9 * 10**18)
    assert needed > sum(values.nbytes for values in mlx_files.model().expected.values()) / 2


def test_two_conversions_into_one_folder_are_refused(folder, tmp_path):
    planned = plan(folder, "F16")
    with destination.whole(tmp_path / "one.gguf") as part:
        part.touch()
        with pytest.raises(ConversionError, match="another conversion is writing"):
            convert(planned, tmp_path / "two.gguf", "tiny")
    assert (tmp_path / "one.gguf").exists()


def test_the_command_prints_the_pin(folder, tmp_path):
    file = tmp_path / "model.gguf"
    command = ["convert", str(folder), str(file), "--type", "Q8_0", "--json"]
    dry = CliRunner().invoke(main, [*command, "--dry-run"])
    assert json.loads(dry.stdout)["needed_bytes"] > 0
    assert not file.exists()
    report = json.loads(CliRunner().invoke(main, command).stdout)
    assert report["ok"]
    assert report["size"] == file.stat().st_size < report["needed_bytes"]
    assert len(report["sha256"]) == 64
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "is there already" in json.loads(again.stdout)["message"]
