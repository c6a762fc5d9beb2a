"""The templates, rendered with Ansible's own templar, and what their programs say of them."""

from __future__ import annotations

import configparser
import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[2]
Render = Callable[..., str]


def trusted(value: Any) -> Any:
    """Strings of our own files may hold templates; Ansible 2.19 asks for them to be marked."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def variables(*files: str) -> dict[str, Any]:
    merged: dict[str, Any] = {
        "ansible_managed": "Ansible managed",
        "__daemon_release_id": "0.1.0-x",
    }
    for name in files:
        merged |= trusted(yaml.safe_load((ROOT / name).read_text()) or {})
    return merged


@pytest.fixture
def render() -> Render:
    def rendered(role: str, template: str, **extra: Any) -> str:
        known = variables(
            "roles/host/defaults/main.yml",
            "roles/model/defaults/main.yml",
            "roles/model/vars/main.yml",
            "roles/daemon/defaults/main.yml",
            "roles/daemon/vars/main.yml",
            *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "group_vars/all").glob("*.yml"))),
            "inventory/demo/group_vars/vistral.yml",
        )
        text = (ROOT / f"roles/{role}/templates/{template}").read_text()
        templar = Templar(loader=DataLoader(), variables=known | extra)
        return str(templar.template(trust_as_template(text)))

    return rendered


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def check_config(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "vistrald.toml"
    path.write_text(text)
    command = ["vistrald", "check-config", str(path), "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_configuration_is_toml_that_the_daemon_accepts(render, tmp_path):
    text = render("daemon", "vistrald.toml.j2")
    settings = tomllib.loads(text)
    assert settings["model"]["path"].startswith("/var/lib/vistral/models/smollm2-135m-instruct-")
    assert settings["engine"]["context_tokens"] == 4096
    assert settings["release"]["id"] == "0.1.0-x"
    result = check_config(tmp_path, text)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_misspelt_key_in_the_inventory_is_refused_by_name(render, tmp_path):
    text = render("daemon", "vistrald.toml.j2", daemon_engine={"context_tokns": 4096})
    result = check_config(tmp_path, text)
    assert result.returncode == 2
    assert "context_tokns" in result.stdout
    assert "context_tokens" in result.stdout


def test_values_with_quotes_and_cyrillic_survive(render):
    text = render("daemon", "vistrald.toml.j2", daemon_model_name='Модель "Вистраль" \\ 24')
    assert tomllib.loads(text)["model"]["name"] == 'Модель "Вистраль" \\ 24'


def test_the_service_is_capped_and_kept_out_of_swap(render):
    service = unit(render("daemon", "vistrald.service.j2"))["Service"]
    assert service["MemoryMax"] == "2000000000"
    assert service["MemorySwapMax"] == "0"
    assert service["Type"] == "notify"
    assert "CPUQuota" not in service
    assert "CPUAffinity" not in service


def test_quota_and_affinity_are_written_when_asked_for(render):
    text = render(
        "daemon", "vistrald.service.j2", daemon_cpu_quota_percent=800, daemon_cpu_affinity="0-7"
    )
    assert unit(text)["Service"]["CPUQuota"] == "800%"
    assert unit(text)["Service"]["CPUAffinity"] == "0-7"


def test_the_service_is_hardened(render, tmp_path):
    """systemd's own rating, 0 (closed) to 10 (open): the unit must stay under 2.5."""
    path = tmp_path / "vistrald.service"
    path.write_text(render("daemon", "vistrald.service.j2"))
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--json=short"]
    result = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    open_doors = [row["name"] for row in json.loads(result.stdout) if row.get("exposure")]
    assert result.returncode == 0, open_doors


def test_sysctl_and_huge_page_files(render):
    lines = render("host", "sysctl.conf.j2", host_swappiness=7).splitlines()
    assert "vm.swappiness = 7" in lines
    assert "vm.nr_hugepages = 0" in lines
    huge = render("host", "tmpfiles.conf.j2", host_transparent_hugepage="madvise")
    assert huge.splitlines()[-1].split() == [
        "w", "/sys/kernel/mm/transparent_hugepage/enabled", "-", "-", "-", "-", "madvise",
    ]  # fmt: skip


@pytest.mark.parametrize("role", sorted(p.name for p in (ROOT / "roles").iterdir()))
def test_every_default_is_specified_and_the_same(role):
    """The specification is what administrators read; a default that differs from it is a lie."""
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    options: dict[str, Any] = {}
    for entry in specs["argument_specs"].values():
        options |= entry.get("options") or {}
    defaults = yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text())
    assert set(defaults) == set(options)
    for name, option in options.items():
        assert option["description"]
        if "default" in option:
            assert defaults[name] == option["default"], name
