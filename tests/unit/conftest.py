"""Loads the roles' own modules, which Ansible keeps outside any package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(role: str, name: str, folder: str = "library") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"roles/{role}/{folder}/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def release_module() -> ModuleType:
    return load("daemon", "vistral_release")


@pytest.fixture(scope="session")
def model_module() -> ModuleType:
    return load("model", "vistral_model")


@pytest.fixture(scope="session")
def model_store() -> ModuleType:
    return load("model", "vistral_model_store")


@pytest.fixture(scope="session")
def model_files() -> ModuleType:
    return load("model", "vistral_model_files", "filter_plugins")


@pytest.fixture(scope="session")
def host_module() -> ModuleType:
    return load("preflight", "vistral_host")
