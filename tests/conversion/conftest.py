"""The venv with MLX, built once into the cache outside the tree, and what it makes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.wheelhouse import cache_dir, locked, pip

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def oracle() -> Callable[..., None]:
    """Runs oracle.py with real mlx-lm; half a minute and 350 MB when it is not in the cache yet."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    venv = cache_dir() / f"mlx-{key}"
    stamp = venv / "complete"
    with locked(venv.with_name(venv.name + ".lock")):
        if not stamp.exists():
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            pip(f"--python={venv}", "install", "--require-hashes", f"--requirement={REQUIREMENTS}")
            stamp.touch()

    def run(*arguments: str | Path) -> None:
        # Without the tree's own packages, and without asking any hub.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["HF_HUB_OFFLINE"] = "1"
        command = [str(venv / "bin/python"), str(HERE / "oracle.py"), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="session")
def mlx_models(oracle: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model as MLX repositories have it: q8, q4."""
    home = tmp_path_factory.mktemp("mlx")
    oracle("make", home)
    return home


@pytest.fixture(scope="session")
def encode(oracle: Callable[..., None], mlx_models: Path) -> Ask:
    """Token ids of texts, by the Hugging Face tokenizer that the model was made with."""

    def run(texts: list[str]) -> Any:
        (mlx_models / "texts.json").write_text(json.dumps(texts))
        oracle("encode", mlx_models / "q8", mlx_models / "texts.json", mlx_models / "ids.json")
        return json.loads((mlx_models / "ids.json").read_text())

    return run
