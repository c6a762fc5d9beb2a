"""Hosts for the deployment tests, and playbooks run on them by ansible-runner."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ansible_runner
import pytest

from lab import Host, Lab
from tests.deploy.support import Outcome, Play, current, outcome

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of the module's own; all its hosts go when the module ends."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    with Lab(f"t-{name}") as lab:
        yield lab


@pytest.fixture(scope="module")
def play(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Play:
    """Runs a playbook of the repository on one host with the demo's variables."""

    def run(
        playbook: str,
        host: Host,
        *,
        check: bool = False,
        cancel: Callable[[], bool] | None = None,
        **extravars: Any,
    ) -> Outcome:
        home = tmp_path_factory.mktemp("play")
        inventory = home / "inventory"
        (inventory / "group_vars").mkdir(parents=True)
        (inventory / "group_vars/vistral.yml").symlink_to(
            ROOT / "inventory/demo/group_vars/vistral.yml"
        )
        hosts = lab.inventory()
        hosts["vistral"] = {"hosts": {host.name: {}}}
        (inventory / "hosts.json").write_text(json.dumps(hosts))
        runner = ansible_runner.run(
            private_data_dir=str(home),
            project_dir=str(ROOT),
            playbook=playbook,
            inventory=str(inventory),
            extravars=extravars,
            cmdline="--check" if check else None,
            quiet=True,
            cancel_callback=cancel,
        )
        return outcome(runner)

    return run


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    """The module's own container host."""
    return lab.up("host")[0]


@pytest.fixture(scope="module")
def first(host: Host, play: Play) -> str:
    """Deploys the first release to it; its id."""
    result = play("site.yml", host)
    assert result.ok, result.text
    return current(host)
