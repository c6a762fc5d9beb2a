"""The life of a host: check mode, first deployment, second release, rollback, and the refusals."""

from __future__ import annotations

import json

import pytest

from lab import Host
from tests.deploy.support import current, generate, status

pytestmark = [pytest.mark.host, pytest.mark.requirement("8.1")]


def files(host: Host) -> str:
    """Names, sizes and times of all that a deployment writes."""
    command = "find /etc /opt /var/lib -xdev -not -path '*/systemd/*' -printf '%p %s %T@\\n' | sort"
    return host.run(["sh", "-c", command]).stdout


def test_check_mode_on_a_fresh_host_passes_and_changes_nothing(host, play):
    before = files(host)
    result = play("site.yml", host, check=True)
    assert result.ok, result.text
    assert any("Would switch from nothing to 0." in message for message in result.messages)
    assert files(host) == before


@pytest.mark.requirement("7.1")
def test_the_first_deployment_answers(host, first):
    answer = generate(host)
    assert answer["response"]
    assert answer["usage"]["completion_tokens"] <= 8


def test_a_second_run_changes_nothing(host, first, play):
    result = play("site.yml", host)
    assert result.ok, result.text
    assert result.changed == []
    assert result.stats["changed"] == {}
    assert current(host) == first


def test_check_mode_on_a_deployed_host_changes_nothing(host, first, play):
    result = play("site.yml", host, check=True)
    assert result.ok, result.text
    assert result.changed == []


@pytest.mark.requirement("8.3")
def test_health_passes_on_a_good_host_and_fails_on_a_stopped_one(host, first, play):
    assert play("playbooks/health.yml", host).ok
    host.run(["systemctl", "stop", "vistrald.service"])
    result = play("playbooks/health.yml", host)
    assert not result.ok
    assert "vistrald.service is inactive" in result.text
    assert "Remedy" in result.text
    host.run(["systemctl", "start", "vistrald.service"])


def test_start_returns_only_when_the_model_answers(host, first):
    """No retry and no wait between the two: ready means ready."""
    host.run(["systemctl", "restart", "vistrald.service"])
    ready = host.run(["curl", "--silent", "--fail", "http://127.0.0.1:8080/health/ready"])
    assert ready.returncode == 0


def test_the_daemon_survives_a_reboot(host, first):
    host.reboot()
    host.run(["systemctl", "is-system-running", "--wait"], check=False)
    assert generate(host)["response"]


def test_rollback_at_the_oldest_release_is_refused(host, first, play):
    result = play("playbooks/rollback.yml", host)
    assert not result.ok
    assert f"{first} is the oldest release" in result.text
    assert current(host) == first
    assert generate(host)["response"]


@pytest.mark.requirement("8.5")
def test_second_release_then_rollback_then_refusal(host, first, play):
    changes = {"daemon_generation": {"max_tokens": 64}, "daemon_cpu_quota_percent": 100}
    result = play("site.yml", host, **changes)
    assert result.ok, result.text
    second = current(host)
    assert second != first
    # More threads than the quota has cores would collapse the throughput.
    assert status(host)["cpu"]["threads"] == 1
    assert play("site.yml", host, **changes).changed == []

    result = play("playbooks/rollback.yml", host, daemon_rollback_reason="answers got worse")
    assert result.ok, result.text
    assert current(host) == first
    assert f"Rolled back from {second} (marked bad) to {first}" in result.text
    assert generate(host)["response"]

    result = play("site.yml", host, **changes)
    assert not result.ok
    assert f"Release {second} is marked bad: answers got worse" in result.text
    assert "daemon_retry_bad_release" in result.text
    assert current(host) == first

    result = play("site.yml", host, daemon_retry_bad_release=True, **changes)
    assert result.ok, result.text
    assert current(host) == second
    assert play("site.yml", host).ok
    assert current(host) == first


def test_another_listening_address_moves_the_socket_and_comes_back(host, first, play):
    result = play("site.yml", host, daemon_listen="0.0.0.0:8181", preflight_ports=[8181])
    assert result.ok, result.text
    listening = host.run(["ss", "-Hltn"]).stdout
    assert ":8181" in listening
    assert ":8080" not in listening
    assert play("playbooks/rollback.yml", host).ok
    assert current(host) == first
    assert generate(host)["response"]


def test_an_installation_that_was_cut_off_is_completed(host, first, play):
    changes = {"daemon_generation": {"max_tokens": 65}}
    assert play("site.yml", host, **changes).ok
    cut = current(host)
    assert play("playbooks/rollback.yml", host).ok
    # As a cut leaves it: the venv is half there and release.json was never written.
    folder = f"/opt/vistral/releases/{cut}"
    host.run(["rm", "-r", f"{folder}/release.json", f"{folder}/bad", f"{folder}/venv/bin"])
    result = play("site.yml", host, **changes)
    assert result.ok, result.text
    assert current(host) == cut
    assert play("playbooks/rollback.yml", host).ok
    assert current(host) == first

    # As a cut between the switch and the restart leaves it: the old process under the new link.
    host.run(["rm", f"{folder}/bad"])
    host.run(["ln", "-sfn", f"releases/{cut}", "/opt/vistral/current"])
    assert status(host)["release"] == first
    result = play("site.yml", host, **changes)
    assert result.ok, result.text
    assert status(host)["release"] == cut


def test_the_release_says_what_it_is(host, first):
    record = json.loads(host.run(["cat", f"/opt/vistral/releases/{first}/release.json"]).stdout)
    assert record["id"] == first
    assert first.startswith(record["code_id"])


def test_no_prompt_reaches_the_journal(host, first):
    generate(host, "Confidential: the client is Ivan Sidorov-Kobylin")
    journal = host.run(["journalctl", "--unit=vistrald.service", "--no-pager"]).stdout
    assert "/api/v1/generate" in journal
    assert "Kobylin" not in journal
