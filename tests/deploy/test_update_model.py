"""Another model on a running host, forth and back, and models that do not load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from bench.model import default
from lab import Host, Lab
from tests.deploy.model_server import Hub, serving
from tests.deploy.support import current, generate, status

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.requirement("8.5")]

UPDATE, ROLLBACK = "playbooks/update_model.yml", "playbooks/rollback_model.yml"
# A header of a GGUF and nothing that libllama would take.
NO_MODEL = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") * 2 + bytes(1 << 20)


@pytest.fixture(scope="module")
def hub(lab: Lab, host: Host) -> Iterator[Hub]:
    with serving(lab.name) as hub:
        hub.files |= {"other.gguf": default().read_bytes(), "broken.gguf": NO_MODEL}
        yield hub


def choose(hub: Hub, name: str, **more: Any) -> dict[str, Any]:
    """Variables that choose a file of the hub."""
    data = hub.files[f"{name}.gguf"]
    pin = {
        "file": f"{name}.gguf",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "urls": [f"{hub.url}/plain/{name}.gguf"],
    }
    return {"model_name": name, "model_catalogue_site": {name: {"files": [pin]}}} | more


def process(host: Host) -> str:
    show = ["systemctl", "show", "vistrald.service", "--property=MainPID", "--value"]
    return host.run(show).stdout.strip()


def test_a_host_without_a_release_has_no_model_to_change(host, play):
    result = play(UPDATE, host)
    assert not result.ok
    assert "There is no current release in /opt/vistral. Run site.yml." in result.text


def test_the_model_is_changed_after_a_trial_and_comes_back_alone(host, first, hub, play):
    before = status(host)["model"]
    refused = play(ROLLBACK, host)
    assert not refused.ok
    assert "there is no former model to return to" in refused.text

    other = choose(hub, "other")
    result = play(UPDATE, host, **other)
    assert result.ok, result.text
    assert "Served now: smollm2-135m-instruct, 0.10 GB, by release" in result.text
    assert "the release is loaded beside the running one first" in result.text
    assert "smollm2-135m-instruct-b179c9523d0e.gguf 0.10 GB (needed by" in result.text
    second = current(host)
    assert status(host)["model"]["name"] == "other"
    assert generate(host)["response"]
    left = host.run(["sh", "-c", "ls /run/vistral-trial /run/systemd/system/vistrald-trial* || :"])
    assert left.stdout == ""
    assert play(UPDATE, host, **other).changed == []

    # Today's configuration with the former model is a release of its own.
    today = {"daemon_generation": {"max_tokens": 80}}
    result = play(ROLLBACK, host, daemon_rollback_reason="answers got worse", **other, **today)
    assert result.ok, result.text
    assert "from other back to smollm2-135m-instruct" in result.text
    assert status(host)["model"] == before
    assert current(host) not in {first, second}
    assert "max_tokens = 80" in host.run(["cat", "/etc/vistrald.toml"]).stdout
    bad = host.run(["cat", f"/opt/vistral/releases/{second}/bad"]).stdout
    assert bad.strip() == "answers got worse"


def test_a_model_that_does_not_load_is_found_out_beside_the_running_one(host, first, hub, play):
    serving_now, pid = current(host), process(host)
    result = play(UPDATE, host, **choose(hub, "broken"))
    assert not result.ok
    assert "failed its trial (Load the model); nothing was switched" in result.text
    assert "model refused" in result.text
    assert (current(host), process(host)) == (serving_now, pid)
    assert generate(host)["response"]
    assert host.run(["systemctl", "is-active", "vistrald-trial"], check=False).returncode != 0


def test_where_memory_is_short_the_switch_is_the_trial_and_goes_back(host, first, hub, play):
    serving_now, model = current(host), status(host)["model"]
    short = {"daemon_trial_memory_bytes": 10**15}
    result = play(UPDATE, host, **choose(hub, "broken"), **short)
    assert not result.ok
    assert "the switch itself is the trial" in result.text
    assert f"Rolled back to {serving_now}, which answers." in result.text
    assert (current(host), status(host)["model"]) == (serving_now, model)
    assert generate(host)["response"]
