"""Hosts that are broken on purpose: each must be refused or healed, and say why."""

from __future__ import annotations

import pytest

from tests.deploy.support import current, generate

pytestmark = pytest.mark.host

MODEL = "/var/lib/vistral/models/smollm2-135m-instruct-b179c9523d0e.gguf"
# Beyond what the model was trained for: valid, and refused only by the engine.
TOO_LONG = {"context_tokens": 16384}
PIN = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.requirement("6.1")
def test_a_host_with_too_little_memory_and_disk_is_refused_untouched(lab, play):
    poor = lab.up("poor", memory=1 << 30, tmpfs={"/var/lib/vistral": 64 << 20})[0]
    result = play("site.yml", poor)
    assert not result.ok
    assert "2 of the checks failed" in result.text
    assert "memory: found 1024 MiB, needed 2048 MiB" in result.text
    assert "disk space under /var/lib/vistral: found 0.1 GB free, needed 1" in result.text
    assert result.text.count("Remedy: ") == 2
    assert poor.run(["ls", "/opt"]).stdout == ""
    assert poor.run(["ls", "/var/lib/vistral"]).stdout == ""


def test_a_first_release_that_dies_leaves_a_stopped_host_and_a_reason(lab, play):
    fresh = lab.up("fresh")[0]
    result = play("site.yml", fresh, daemon_engine=TOO_LONG)
    assert not result.ok
    assert "There was no release before it: the daemon is stopped." in result.text
    assert current(fresh) == ""
    assert fresh.run(["systemctl", "is-active", "vistrald.socket"], check=False).returncode != 0
    # The cause is mended: the same host takes the next deployment.
    result = play("site.yml", fresh)
    assert result.ok, result.text
    assert generate(fresh)["response"]


@pytest.mark.requirement("8.5")
def test_a_release_that_dies_at_start_is_rolled_back_by_itself(host, first, play):
    result = play("site.yml", host, daemon_engine=TOO_LONG)
    assert not result.ok
    assert "failed and was marked bad" in result.text
    assert f"Rolled back to {first}, which answers." in result.text
    assert current(host) == first
    assert generate(host)["response"]
    assert "context_tokens = 4096" in host.run(["cat", "/etc/vistrald.toml"]).stdout


@pytest.mark.requirement("6.1")
@pytest.mark.requirement("6.5")
def test_a_model_that_does_not_fit_never_goes_live(host, first, play):
    result = play("site.yml", host, daemon_memory_max_bytes=300_000_000)
    assert not result.ok
    assert "did not go live" in result.text
    assert "needs 0.3" in result.text
    assert "daemon_engine.context_tokens: " in result.text
    assert current(host) == first
    assert generate(host)["response"]
    limit = host.run(["systemctl", "show", "vistrald.service", "--property=MemoryMax", "--value"])
    assert limit.stdout.strip() == "2000000000"


@pytest.mark.requirement("4.1")
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_model_is_not_loaded_and_the_next_run_mends_it(host, first, play, damage):
    commands = {
        "altered": f"printf X | dd of={MODEL} bs=1 seek=50000000 conv=notrunc",
        "truncated": f"truncate --size=-100 {MODEL}",
        "missing": f"rm {MODEL}",
    }
    host.run(["sh", "-c", commands[damage]])
    started = host.run(["systemctl", "restart", "vistrald.service"], check=False)
    assert started.returncode != 0
    journal = host.run(["journalctl", "--unit=vistrald.service", "--lines=40", "--output=cat"])
    expected = {"altered": PIN, "truncated": "98362432", "missing": "does not exist"}
    assert expected[damage] in journal.stdout.lower()
    host.run(["systemctl", "stop", "vistrald.service"])
    host.run(["systemctl", "reset-failed", "vistrald.service"])

    result = play("site.yml", host)
    assert result.ok, result.text
    assert current(host) == first
    assert generate(host)["response"]


def test_a_wrong_value_in_the_inventory_never_goes_live(host, first, play):
    result = play("site.yml", host, daemon_engine={"context_tokens": -5})
    assert not result.ok
    assert "context_tokens" in result.text
    assert "-5" in result.text
    assert current(host) == first
    assert generate(host)["response"]


def test_a_model_without_a_pin_is_refused(host, first, play):
    result = play("site.yml", host, model_sha256="")
    assert not result.ok
    assert "The model is not pinned: model_sha256 is ''" in result.text
    assert current(host) == first
