"""One visit of a server in a round: start, ask, let users ask, restart, ask again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from bench.corpus import Corpus, Messages
from bench.load import TIMEOUT_SECONDS, AskError, ask, users
from bench.ratios import percentile
from bench.servers import Running, Server, running

TTFT_TOKENS = 8  # of an answer whose first token alone is of interest


@dataclass(frozen=True)
class Effort:
    """How much is asked in a visit."""

    rounds: int
    documents: int  # for each TTFT
    alone_tokens: int  # of an answer with the machine to itself
    questions: int  # of each user
    # What eight cores generate of a 24B model in the default deadline of 30 s, prompt included.
    answer_tokens: int = 64


FULL = Effort(rounds=5, documents=3, alone_tokens=160, questions=4)
QUICK = Effort(rounds=1, documents=1, alone_tokens=48, questions=1, answer_tokens=32)

USERS = (4, 8)
SHARED_SECTIONS = 3  # that the users ask about


def visit(
    server: Server, home: Path, corpus: Corpus, effort: Effort
) -> Iterator[tuple[str, float]]:
    """Yields (row, value) as measured. Raises ServerError, AskError, requests.RequestException."""
    # Nothing may be known from the round before; that the model file was verified may.
    shutil.rmtree(home / "state/prefixes", ignore_errors=True)
    with running(server, home) as started:
        yield "ready", started.ready_seconds
        yield from _first_tokens(started, corpus, effort)
        yield from _alone(started, corpus, effort)
        for count in USERS:
            yield from _users(started, corpus, effort, count)
        if server.keeps:
            _keep(started, corpus, effort)
    peak = started.peak
    with running(server, home) as started:
        for document in range(effort.documents):
            yield "restart", _first_token(started, _marked(corpus, document, 2))
    yield "memory", max(peak, started.peak) / 1e6


def visit_quoting(
    server: Server, home: Path, corpus: Corpus, effort: Effort
) -> Iterator[tuple[str, float]]:
    """Only what an answer alone gains or loses."""
    with running(server, home) as started:
        yield from _alone(started, corpus, effort)


def _first_tokens(started: Running, corpus: Corpus, effort: Effort) -> Iterator[tuple[str, float]]:
    for document in range(effort.documents):
        yield "cold", _first_token(started, _marked(corpus, document, 0))
        yield "warm", _first_token(started, _marked(corpus, document, 1))


def _marked(corpus: Corpus, document: int, question: int | None) -> Messages:
    """Each document under a system text of its own, so that none has a beginning that is known."""
    text = "" if question is None else corpus.question(question)
    return corpus.messages(document, text, mark=f"Case {document + 1}. ")


def _keep(started: Running, corpus: Corpus, effort: Effort) -> None:
    """Has the documents kept on disk, as an operator has those of a corpus."""
    for document in range(effort.documents):
        response = requests.post(
            f"{started.url}/api/v1/prefixes",
            json={"messages": _marked(corpus, document, None)},
            timeout=TIMEOUT_SECONDS,
        )
        if not response.ok:
            raise AskError(f"{response.url} answered {response.status_code}: {response.text[:300]}")


def _first_token(started: Running, messages: Messages) -> float:
    return ask(started.url, messages, TTFT_TOKENS).ttft


def _alone(started: Running, corpus: Corpus, effort: Effort) -> Iterator[tuple[str, float]]:
    for section in range(effort.documents):
        asked = corpus.messages(section, corpus.question(section))
        yield "decode", ask(started.url, asked, effort.alone_tokens).decode_rate
        yield "quote", ask(started.url, corpus.quoting(section), effort.alone_tokens).decode_rate


def _users(
    started: Running, corpus: Corpus, effort: Effort, count: int
) -> Iterator[tuple[str, float]]:
    """Each user goes through the same few sections, every one from another on.

    A system text of its own makes the load begin cold, whatever was asked before.
    """
    load = users(
        started.url,
        [
            [
                corpus.messages(
                    (user + each) % SHARED_SECTIONS,
                    corpus.question(user + 3 * each),
                    mark=f"Office of {count}. ",
                )
                for each in range(effort.questions)
            ]
            for user in range(count)
        ],
        effort.answer_tokens,
    )
    started.look()
    yield f"total{count}", load.tokens / load.seconds
    yield f"p95_{count}", percentile([answer.latency for answer in load.answers], 0.95)
    yield f"tokens{count}", load.tokens / len(load.answers)
