import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vistrald.cli import main
from vistrald.settings import SettingsError, read_settings

MODEL = f"""
[model]
path = "/models/m.gguf"
sha256 = "{"a" * 64}"
size = 1000
name = "m"
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "vistrald.toml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(tmp_path: Path, text: str) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        read_settings(write(tmp_path, text))
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_only_the_model_is_required(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, MODEL))
    assert settings.server.listen == "127.0.0.1:8080"
    assert settings.engine.load_mode == "none"


def test_every_problem_is_listed_with_value_limit_and_remedy(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        MODEL.replace("size = 1000\n", "").replace("/models", "models")
        + '[engine]\nthreads = -1\nkv_typ = "f16"\n[generation]\ntemperature = "hot"\n',
    )
    assert set(found) == {
        "model.path",
        "model.size",
        "engine.threads",
        "engine.kv_typ",
        "generation.temperature",
    }
    assert "did you mean `kv_type`" in found["engine.kv_typ"]
    assert "-1" in found["engine.threads"]
    assert "greater than or equal to 0" in found["engine.threads"]
    assert "add `size" in found["model.size"]
    assert "absolute" in found["model.path"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[engine]\nload_mode = "mmap"\n', "RAM twice"),
        ("[engine]\nqueue_length = 40\n", "health checks"),
        ("[engine]\ncontext_tokens = 512\n", "context_tokens"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, text: str, words: str) -> None:
    assert words in " ".join(problems(tmp_path, MODEL + text).values())


def test_types_are_not_converted(tmp_path: Path) -> None:
    assert "engine.threads" in problems(tmp_path, MODEL + '[engine]\nthreads = "4"\n')


def test_broken_toml_and_missing_file(tmp_path: Path) -> None:
    assert "TOML" in problems(tmp_path, "[model\n")["file"]
    with pytest.raises(SettingsError, match="No such file"):
        read_settings(tmp_path / "none.toml")


def test_check_config_prints_one_json_object(tmp_path: Path) -> None:
    good = CliRunner().invoke(main, ["check-config", str(write(tmp_path, MODEL)), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True
    bad = CliRunner().invoke(main, ["check-config", str(write(tmp_path, "")), "--json"])
    assert bad.exit_code == 2
    report = json.loads(bad.stdout)
    assert report["errors"][0]["key"] == "model"
    assert set(report["errors"][0]) == {"key", "value", "limit", "remedy"}
