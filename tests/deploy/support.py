"""What the deployment tests read from playbooks and hosts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Host


@dataclass
class Outcome:
    """What a playbook did, from ansible-runner's events."""

    status: str
    changed: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    output: str = ""  # what a person sees
    record: str = ""  # all that Ansible tells its callbacks, for logs to keep

    @property
    def ok(self) -> bool:
        return self.status == "successful"

    @property
    def text(self) -> str:
        return "\n".join([*self.failures, *self.messages])


def outcome(runner: Any) -> Outcome:
    events = list(runner.events)
    result = Outcome(
        runner.status,
        stats=runner.stats or {},
        output=runner.stdout.read(),
        record=json.dumps(events),
    )
    for event in events:
        data = event.get("event_data", {})
        answer = data.get("res", {})
        message = str(answer.get("msg", ""))
        if event["event"] == "runner_on_ok":
            if answer.get("changed"):
                result.changed.append(data["task"])
            if data.get("task_action") == "ansible.builtin.debug":
                result.messages.append(message)
        elif event["event"] == "runner_on_failed" and not data.get("ignore_errors"):
            # A loop's own message says only that some item failed.
            items = [
                item.get("msg", "") for item in answer.get("results", []) if item.get("failed")
            ]
            said = " ".join([message, answer.get("stdout", ""), *items])
            result.failures.append(f"{data['task']}: {said}")
    return result


Play = Callable[..., Outcome]


def current(host: Host) -> str:
    """The release that `current` points to; empty without one."""
    return Path(host.run(["readlink", "/opt/vistral/current"], check=False).stdout.strip()).name


def status(host: Host) -> dict[str, Any]:
    """What the daemon says of itself."""
    answer = host.run(["curl", "--silent", "--fail", "http://127.0.0.1:8080/api/v1/status"]).stdout
    parsed: dict[str, Any] = json.loads(answer)
    return parsed


def generate(host: Host, prompt: str = "What is a contract?") -> dict[str, Any]:
    """A question through the RAG interface, asked on the host itself."""
    command = ["curl", "--silent", "--fail-with-body", "--max-time", "60"]
    command += ["--json", json.dumps({"prompt": prompt, "max_tokens": 8})]
    answer = host.run([*command, "http://127.0.0.1:8080/api/v1/generate"]).stdout
    parsed: dict[str, Any] = json.loads(answer)
    return parsed
