"""Asks a running daemon a legal question through the RAG interface, as the application does."""

import json
from collections.abc import Iterator
from typing import Any

import requests

CONNECT_SECONDS = 10
SILENCE_SECONDS = 600  # the daemon pings while it computes


class AskError(Exception):
    """The daemon refused; the message carries its own and the hint."""


def ask(url: str, question: str, context: str | None) -> Iterator[str | dict[str, Any]]:
    """Text pieces of the answer, then one dict: the summary with usage and timings.

    Raises AskError, requests.RequestException.
    """
    timeout = (CONNECT_SECONDS, SILENCE_SECONDS)
    made = requests.post(
        f"{url}/api/v1/prompt", json={"question": question, "context": context}, timeout=timeout
    )
    _check(made)
    answer = requests.post(
        f"{url}/api/v1/stream",
        # Greedy: whoever tries out a host wants the same answer twice.
        json={"prompt": made.json()["prompt"], "temperature": 0, "best_effort": True},
        timeout=timeout,
        stream=True,
    )
    _check(answer)
    name = ""
    for line in answer.iter_lines():
        field, _, value = line.decode().partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data = json.loads(value)
            if name == "error":
                raise AskError(_describe(data))
            yield data if name == "done" else data["text"]
            name = ""


def _check(response: requests.Response) -> None:
    if response.status_code != requests.codes.ok:
        raise AskError(describe(response))


def describe(response: requests.Response) -> str:
    """What a daemon refused with, for people."""
    try:
        return _describe(response.json())
    except (ValueError, KeyError, TypeError):  # not the daemon's own
        return f"status {response.status_code} from {response.url}"


def _describe(body: dict[str, Any]) -> str:
    error = body["error"]
    return f"{error['message']} ({error['code']}); {error['hint']}"
