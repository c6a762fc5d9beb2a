"""Documents computed beforehand: `vistrald warm`, POST /api/v1/prefixes, a restart, a question."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from flask.testing import FlaskClient

from tests.daemon.helpers import wait_until
from tests.daemon.test_serve import Daemon, Launcher
from vistrald.api.errors import ApiError
from vistrald.api.prefixes import beginning
from vistrald.api.schemas import PrefixRequest
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.template import Message
from vistrald.legal.prompts import legal_messages
from vistrald.settings import ModelSection
from vistrald.warm import CorpusError, read_corpus

ARTICLES = {
    f"ст. {number} УК РФ": f"Статья {number}. {text}\n1. Деяние наказывается штрафом. " * 4
    for number, text in ((158, "Кража"), (159, "Мошенничество"), (161, "Грабёж"))
}
KEPT = 'disk_cache_bytes = 1_000_000_000\nkv_type = "q8_0"'
QUESTIONS = ("Каково наказание?", "1 часть?", " с отступом", "А что такое деяние?", "«Цитата»?")


@pytest.fixture
def launcher(tmp_path: Path, model_section: ModelSection) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path, model_section)
    yield launcher
    launcher.stop_all()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "articles.jsonl"
    lines = [{"id": name, "context": text} for name, text in ARTICLES.items()]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return path


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "vistrald", "warm", *map(str, args)]


def warm(*args: object) -> tuple[int, Any, str]:
    """Exit status, the JSON on stdout, stderr."""
    done = subprocess.run(
        command(*args, "--json"), capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def asked(daemon: Daemon, document: str) -> Any:
    """The timings of a question about a document, and its tokens on disk from the metrics."""
    made = requests.post(
        f"{daemon.url}/api/v1/prompt",
        json={"question": "Каков срок?", "context": document},
        timeout=60,
    )
    body = {"prompt": made.json()["prompt"], "max_tokens": 2, "best_effort": True}
    return requests.post(f"{daemon.url}/api/v1/generate", json=body, timeout=60).json()["timings"]


def metric(daemon: Daemon, name: str) -> float:
    lines = daemon.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


# --- Where a prefix ends ---------------------------------------------------------


@pytest.mark.parametrize("document", ARTICLES.values())
def test_every_question_about_a_document_begins_with_its_prefix(
    encoder: PromptEncoder, document: str
) -> None:
    tokens = beginning(encoder.encode_messages, PrefixRequest(context=document))
    histories: list[list[Message]] = [[], [Message("user", "До"), Message("assistant", "После")]]
    for question in QUESTIONS:
        for history in histories:
            prompt = encoder.encode_messages(legal_messages(question, document, history))
            assert prompt[: len(tokens)] == tokens
    # All of the document is in it.
    assert len(tokens) > len(encoder.encode_messages(legal_messages("?", document))) - 12


def test_with_no_documents_it_is_what_all_prompts_with_documents_begin_with(
    encoder: PromptEncoder,
) -> None:
    tokens = beginning(encoder.encode_messages, PrefixRequest())
    for document in [*ARTICLES.values(), *QUESTIONS]:
        prompt = encoder.encode_messages(legal_messages("Да?", document))
        assert prompt[: len(tokens)] == tokens


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_conversation_goes_on_after_its_beginning(encoder: PromptEncoder, role: Any) -> None:
    text = " ".join(ARTICLES.values())
    messages = [{"role": "user", "content": "Hello"}] if role == "assistant" else []
    messages.append({"role": role, "content": text})
    tokens = beginning(
        encoder.encode_messages, PrefixRequest.model_validate({"messages": messages})
    )
    said = [Message(each["role"], each["content"]) for each in messages]  # type: ignore[arg-type]
    for question in QUESTIONS:
        if role == "user":
            whole = [*said[:-1], Message("user", text + question)]
        else:
            whole = [*said, Message("user", question)]
        assert encoder.encode_messages(whole)[: len(tokens)] == tokens


def test_a_prefix_of_a_few_words_is_refused(encoder: PromptEncoder) -> None:
    body = PrefixRequest.model_validate({"messages": [{"role": "user", "content": "Да"}]})
    with pytest.raises(ApiError, match="at least 64"):
        beginning(encoder.encode_messages, body)


# --- The interface ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"context": " "}, 400, "invalid_request"),
        ({"context": "a", "messages": [{"role": "user", "content": "b"}]}, 400, "invalid_request"),
        ({"documents": "a"}, 400, "invalid_request"),
        ({"context": "a"}, 409, "disk_cache_off"),
    ],
)
def test_refusals(client: FlaskClient, body: Any, status: int, code: str) -> None:
    answer = client.post("/api/v1/prefixes", json=body)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)


def test_documents_are_known_after_a_restart(launcher: Launcher, corpus: Path) -> None:
    daemon = launcher.ready(launcher.start(KEPT))
    status, plan, said = warm(corpus, "--url", daemon.url, "--dry-run")
    assert (status, plan["entries"], plan["known"], plan["ok"]) == (0, 4, 0, True)
    assert plan["seconds"] > 0
    assert "4 prefixes, 0 of them known" in said
    assert metric(daemon, "vistrald_disk_cache_files") == 0
    status, report, _ = warm(corpus, "--url", daemon.url)
    assert (status, report["saved"], report["known"]) == (0, 4, 0)
    assert abs(metric(daemon, "vistrald_disk_cache_bytes") / plan["bytes"] - 1) < 0.05
    assert daemon.get("/api/v1/status").json()["totals"]["total_requests"] == 0  # no person's
    status, report, _ = warm(corpus, "--url", daemon.url)
    assert (status, report["saved"], report["known"], report["tokens"]) == (0, 0, 4, 0)
    daemon.process.terminate()
    daemon.process.wait(timeout=60)
    again = launcher.ready(launcher.start(KEPT))
    for document in ARTICLES.values():
        timings = asked(again, document)
        assert timings["prompt_n"] < 20 < timings["cache_n"]
    assert metric(again, 'vistrald_prefix_cache_hits_total{source="disk"}') == 3
    # One that is not in the file has the instructions from disk, or from those before.
    assert asked(again, "Статья 1. Задачи.")["cache_n"] >= 64


@pytest.mark.parametrize("victim", ["command", "daemon"])
def test_a_run_cut_off_is_gone_on_with(launcher: Launcher, corpus: Path, victim: str) -> None:
    daemon = launcher.ready(launcher.start(KEPT))
    run = subprocess.Popen(command(corpus, "--url", daemon.url), stderr=subprocess.DEVNULL)
    wait_until(lambda: metric(daemon, "vistrald_disk_cache_files") >= 2, 60)
    if victim == "command":
        run.kill()
        run.wait()
        wait_until(lambda: daemon.queue()["running"] == 0)  # what nobody waits for is cancelled
    else:
        for worker in psutil.Process(daemon.process.pid).children():
            worker.kill()
        daemon.process.wait(timeout=60)
        assert run.wait(timeout=120) == 1
        daemon = launcher.ready(launcher.start(KEPT))
    status, report, _ = warm(corpus, "--url", daemon.url)
    assert (status, report["saved"] + report["known"]) == (0, 4)
    assert report["known"] >= 2


def test_two_runs_at_once_take_turns(launcher: Launcher, corpus: Path) -> None:
    daemon = launcher.ready(launcher.start(KEPT))
    reports: list[Any] = []
    runs = [
        threading.Thread(target=lambda: reports.append(warm(corpus, "--url", daemon.url)[:2]))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [status for status, _ in reports] == [0, 0]
    assert metric(daemon, "vistrald_disk_cache_files") == 4


def test_a_cap_that_is_too_small_is_told_before_anything_is_computed(
    launcher: Launcher, corpus: Path
) -> None:
    daemon = launcher.ready(launcher.start("disk_cache_bytes = 3_000_000"))
    status, report, said = warm(corpus, "--url", daemon.url)
    assert (status, report["ok"]) == (1, False)
    assert "the cap is engine.disk_cache_bytes = 3000000" in said
    assert metric(daemon, "vistrald_disk_cache_files") == 0
    answer = requests.post(
        f"{daemon.url}/api/v1/prefixes", json={"context": "Статья. " * 250}, timeout=60
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "prefix_too_large")


def test_a_daemon_that_keeps_nothing_says_so(launcher: Launcher, corpus: Path) -> None:
    daemon = launcher.ready(launcher.start())
    status, _, said = warm(corpus, "--url", daemon.url)
    assert status == 1
    assert "disk_cache_off" in said


# --- The file ----------------------------------------------------------------------


def problems(path: Path) -> list[str]:
    with pytest.raises(CorpusError) as caught:
        read_corpus(path)
    return str(caught.value).split("\n")


def test_a_wrong_file_is_refused_with_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    good = '{"id": "a", "context": "text"}'
    lines = [good, "", "{", '{"id": "b"}', '{"id": "c", "contxt": "x"}', good]
    path.write_text("\n".join([*lines, '{"id": "d", "context": " "}']))
    found = problems(path)
    assert [line.split(":")[1] for line in found] == ["3", "4", "5", "6", "7"]
    assert "contxt" in found[2]
    assert "id = 'a' is line 1's too" in found[3]
    status, report, _ = warm(path)
    assert (status, report["ok"]) == (2, False)


def test_the_example_in_the_documentation_is_right() -> None:
    assert len(read_corpus(Path(__file__).parents[2] / "docs/examples/articles.jsonl")) == 3


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe"), lambda _: None]
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "corpus.jsonl")
    assert str(tmp_path / "corpus.jsonl") in problems(tmp_path / "corpus.jsonl")[0]
