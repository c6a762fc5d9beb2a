"""The client's side: one streamed answer, or several users who each ask one question after another.

Chunks are only stamped as they come and parsed after the last one: the load shares the cores with
the server that it measures.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests

from bench.corpus import Messages

MODEL = "bench"  # the name under which every server serves the file
TIMEOUT_SECONDS = 3600  # a large model's; a server that died closes the connection


class AskError(Exception):
    """A server answered something other than an answer."""


@dataclass(frozen=True)
class Answer:
    """Times in seconds, of one monotonic clock."""

    asked: float
    first: float  # the first text
    last: float  # the last text
    tokens: int
    text: str
    drafted: int = 0
    accepted: int = 0

    @property
    def ttft(self) -> float:
        return self.first - self.asked

    @property
    def latency(self) -> float:
        return self.last - self.asked

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first."""
        return (self.tokens - 1) / (self.last - self.first) if self.tokens > 1 else 0.0


@dataclass(frozen=True)
class Load:
    """What a group of users got."""

    seconds: float  # from the first question to the last answer
    answers: list[Answer]

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)


def ask(url: str, messages: Messages, max_tokens: int) -> Answer:
    """A greedy streamed answer. Raises AskError, requests.RequestException."""
    body = {
        "model": MODEL,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = time.monotonic()
    stamped: list[tuple[float, bytes]] = []
    with requests.post(
        f"{url}/v1/chat/completions", json=body, stream=True, timeout=TIMEOUT_SECONDS
    ) as response:
        if response.status_code != requests.codes.ok:
            raise AskError(f"{url} answered {response.status_code}: {response.text[:300]}")
        for line in response.iter_lines(chunk_size=None):
            stamped.append((time.monotonic(), line))
    return parse(asked, stamped)


def parse(asked: float, stamped: list[tuple[float, bytes]]) -> Answer:
    """An answer from the lines of its event stream. Raises AskError.

    How many tokens it has is the server's word where it gives one (`timings`, `usage`), else the
    number of texts: llama_cpp.server sends one for each token and says no more.
    """
    texts: list[tuple[float, str]] = []
    told: dict[str, Any] = {}
    for at, line in stamped:
        data = line.removeprefix(b"data: ")
        if data in (line, b"[DONE]"):
            continue
        event = json.loads(data)
        if "error" in event:
            raise AskError(f"the stream ended with {event['error']}")
        told |= event.get("timings") or {}
        if usage := event.get("usage"):
            told["predicted_n"] = usage["completion_tokens"]
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                texts.append((at, text))
    if not texts:
        raise AskError("the answer has no text")
    return Answer(
        asked=asked,
        first=texts[0][0],
        last=texts[-1][0],
        tokens=told.get("predicted_n", len(texts)),
        text="".join(text for _, text in texts),
        drafted=told.get("draft_n", 0),
        accepted=told.get("draft_n_accepted", 0),
    )


def users(url: str, questions: list[list[Messages]], max_tokens: int) -> Load:
    """Each user asks their questions one after another, all users begin together."""
    together = threading.Barrier(len(questions) + 1)

    def user(own: list[Messages]) -> list[Answer]:
        together.wait()
        return [ask(url, messages, max_tokens) for messages in own]

    with ThreadPoolExecutor(len(questions)) as pool:
        running = [pool.submit(user, own) for own in questions]
        together.wait()
        began = time.monotonic()
        answers = [answer for future in running for answer in future.result()]
    return Load(max(answer.last for answer in answers) - began, answers)
