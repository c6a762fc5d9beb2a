"""The HTTP interface in-process, on the real model."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.daemon.helpers import events
from vistrald.api import create_app
from vistrald.notify import Notifier
from vistrald.service import Service
from vistrald.settings import Settings

SHORT = {"max_tokens": 4, "temperature": 0}


def error_of(response: Any) -> dict[str, str]:
    assert response.is_json, response.data
    error: dict[str, str] = response.json["error"]
    assert set(error) == {"code", "message", "hint", "request_id"}
    assert response.headers["X-Request-Id"] == error["request_id"]
    return error


@pytest.fixture
def cold_client(settings: Settings) -> Iterator[FlaskClient]:
    """A service whose model is not loaded yet."""
    service = Service(settings, notifier=Notifier(None), on_failure=lambda _: None)
    with create_app(service).test_client() as client:
        yield client


def test_prompt_then_generate(client: FlaskClient) -> None:
    made = client.post(
        "/api/v1/prompt",
        json={
            "question": "Что такое кража?",
            "context": "Статья 158",
            "chat_history": [
                {"role": "user", "content": "Привет"},
                {"role": "bot", "content": "Здравствуйте"},
            ],
        },
    )
    prompt = made.json["prompt"]
    assert prompt.startswith("<|im_start|>system\nТы — помощник юриста")
    assert prompt.index("Статья 158") < prompt.index("Привет") < prompt.index("Что такое кража?")
    assert prompt.endswith("Что такое кража?<|im_end|>\n<|im_start|>assistant\n")
    answer = client.post("/api/v1/generate", json={"prompt": prompt, **SHORT}).json
    assert answer["response"]
    assert answer["finish_reason"] in {"stop", "length"}
    assert answer["usage"]["total_tokens"] == (
        answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    )
    timings, usage = answer["timings"], answer["usage"]
    assert timings["prompt_n"] + timings["cache_n"] == usage["prompt_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": timings["cache_n"]}


def test_a_repeated_question_is_taken_from_the_cache(client: FlaskClient) -> None:
    request = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "Что такое разбойное нападение?"}],
        **SHORT,
    }
    metric = 'vistrald_prefix_cache_tokens_total{source="resident"}'

    def counted() -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(metric)).split()[1])

    client.post("/v1/chat/completions", json=request)
    before = counted()
    usage = client.post("/v1/chat/completions", json=request).json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    assert counted() - before == usage["prompt_tokens"] - 1


def test_stream_equals_generate_and_ends_with_a_summary(client: FlaskClient) -> None:
    request = {"prompt": "What is theft?", "max_tokens": 12, "temperature": 0}
    whole = client.post("/api/v1/generate", json=request).json
    response = client.post("/api/v1/stream", json=request)
    assert response.mimetype == "text/event-stream"
    *texts, (name, summary) = events(response.text)
    assert "".join(data["text"] for _, data in texts) == whole["response"]
    assert name == "done"
    assert summary["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert summary["request_id"] == response.headers["X-Request-Id"]


def test_a_bare_prompt_is_one_user_message(client: FlaskClient) -> None:
    bare = client.post("/api/v1/generate", json={"prompt": "What is theft?", **SHORT}).json
    chat = client.post(
        "/v1/chat/completions",
        json={
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": "What is theft?"}],
            **SHORT,
        },
    ).json
    assert bare["response"] == chat["choices"][0]["message"]["content"]
    assert bare["usage"]["total_tokens"] == chat["usage"]["total_tokens"]


def test_saigas_formats_give_the_same_prompt(client: FlaskClient) -> None:
    prompts = [
        "<s><system>Be brief.</system><user>What is theft?</user><bot>",
        "<s>system\nBe brief.</s><s>user\nWhat is theft?</s><s>bot\n",
    ]
    answers = [client.post("/api/v1/generate", json={"prompt": p, **SHORT}).json for p in prompts]
    assert answers[0]["usage"]["total_tokens"] == answers[1]["usage"]["total_tokens"]
    assert answers[0]["response"] == answers[1]["response"]


def test_max_tokens_is_lowered_to_the_configured_limit(client: FlaskClient) -> None:
    answer = client.post("/api/v1/generate", json={"prompt": "Count.", "max_tokens": 100_000}).json
    assert answer["usage"]["completion_tokens"] <= 64


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "must not be empty"),
        ({"prompt": 5}, "prompt = 5: Input should be a valid string"),
        ({"prompt": "x", "temperature": "0.3"}, "temperature"),
        ({"prompt": "x", "temperature": 2.5}, "temperature = 2.5: Input should be less than"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens = 0"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"prompt": "x", "top_p": 0}, "top_p"),
        ({"prompt": "x", "seed": -1}, "seed"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "x", "max_token": 5}, "did you mean max_tokens"),
        ([], "body"),
        (None, "body"),
    ],
)
def test_bad_fields_are_named(client: FlaskClient, body: Any, words: str) -> None:
    response = client.post(
        "/api/v1/generate", data=json.dumps(body), content_type="application/json"
    )
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "invalid_request"
    assert words in error["message"]


def test_an_error_never_repeats_the_text(client: FlaskClient) -> None:
    response = client.post("/api/v1/generate", json={"prompt": ["Тайна Иванова"]})
    assert "Тайна" not in response.text


@pytest.mark.parametrize(
    "data", [b"", b"{", b"prompt=x", b"\xff\xfe", b"[" * 100_000, b'{"prompt": "\\ud800"}']
)
def test_what_is_not_json(client: FlaskClient, data: bytes) -> None:
    response = client.post("/api/v1/generate", data=data, content_type="application/json")
    assert response.status_code == 400
    assert error_of(response)["code"] in {"invalid_json", "invalid_request"}


def test_other_content_types(client: FlaskClient) -> None:
    response = client.post("/api/v1/generate", data="prompt=x")
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]


def test_unknown_paths_and_methods(client: FlaskClient) -> None:
    missing = client.get("/api/v2/generate")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = client.get("/api/v1/generate")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["Allow"]


def test_a_body_beyond_the_limit(client: FlaskClient, settings: Settings) -> None:
    response = client.post(
        "/api/v1/generate", json={"prompt": "x" * settings.server.max_body_bytes}
    )
    assert response.status_code == 413
    assert str(settings.server.max_body_bytes) in error_of(response)["message"]


def test_a_prompt_beyond_the_context(client: FlaskClient) -> None:
    response = client.post("/api/v1/generate", json={"prompt": "закон " * 3000})
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "context_overflow"
    assert "the limit is 1023" in error["message"]
    assert "shorten" in error["hint"]


def test_unknown_model(client: FlaskClient) -> None:
    response = client.post(
        "/v1/chat/completions",
        json={"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]},
    )
    assert response.status_code == 404
    error = error_of(response)
    assert (error["code"], "smollm2-135m" in error["hint"]) == ("model_not_found", True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function"}]),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1.0}),
        ("logit_bias", {"a": 1}),
        ("presence_penalty", 2.5),
        ("messages", []),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user", "content": ""}]),
        ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("stream", "yes"),
    ],
)
def test_openai_fields_that_are_not_offered_are_refused(
    client: FlaskClient, field: str, value: Any
) -> None:
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": "x"}], field: value}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert field in error_of(response)["message"]


def test_harmless_openai_fields_are_ignored(client: FlaskClient) -> None:
    body = {
        "model": "smollm2-135m",
        "messages": [
            {"role": "developer", "content": "Be brief.", "name": "x"},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        "user": "u1",
        "metadata": {"a": "b"},
        "n": 1,
        "tools": [],
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "max_completion_tokens": 3,
    }
    answer = client.post("/v1/chat/completions", json=body).json
    assert answer["usage"]["completion_tokens"] <= 3


def test_request_ids_are_taken_over_if_plain(client: FlaskClient) -> None:
    taken = client.get("/health/live", headers={"X-Request-Id": "abc-1"})
    assert taken.headers["X-Request-Id"] == "abc-1"
    made = client.get("/health/live", headers={"X-Request-Id": "a b;c"})
    assert len(made.headers["X-Request-Id"]) == 32


def test_while_loading(cold_client: FlaskClient) -> None:
    assert cold_client.get("/health/live").status_code == 200
    ready = cold_client.get("/health/ready")
    assert (ready.status_code, ready.json["phase"]) == (503, "starting")
    response = cold_client.post("/api/v1/generate", json={"prompt": "x"})
    assert response.status_code == 503
    assert error_of(response)["code"] == "not_ready"
    assert int(response.headers["Retry-After"]) > 0


def test_health_status_metrics_and_page(client: FlaskClient) -> None:
    client.post("/api/v1/generate", json={"prompt": "Hi", **SHORT})
    assert client.get("/health/ready").json["status"] == "ready"
    status = client.get("/api/v1/status").json
    assert status["release"] == "test-1"
    assert status["totals"]["successful_requests"] >= 1
    assert status["memory"]["rss_bytes"] > 50e6
    metrics = client.get("/metrics").text
    for name in (
        "vistrald_prompt_tokens_total",
        "vistrald_tokens_predicted_total",
        "vistrald_prompt_seconds_total",
        "vistrald_tokens_predicted_seconds_total",
        "vistrald_requests_processing",
        "vistrald_prefix_cache_hits_total",
        "vistrald_kv_cache_usage_ratio",
        "vistrald_requests_deferred",
        "vistrald_time_to_first_token_seconds_bucket",
        "process_resident_memory_bytes",
    ):
        assert f"\n{name}" in metrics
    assert 'release="test-1"' in metrics
    page = client.get("/").text
    assert "http://" not in page
    assert "https://" not in page
    assert "состояние" in page


def test_the_log_has_counts_and_no_text(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        with client.post("/api/v1/generate", json={"prompt": "Тайна Ивановой", **SHORT}) as done:
            answer = done.json
        client.post("/api/v1/generate", json={"prompt": "Тайна", "temperature": 9})
    line = next(message for message in caplog.messages if answer["request_id"] in message)
    assert f"prompt_tokens={answer['usage']['prompt_tokens']}" in line
    assert "status=200" in line
    assert "Тайна" not in caplog.text
    assert not answer["response"].strip() or answer["response"] not in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "messages", "model", "role", "content", "stop", "question"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from(["/api/v1/prompt", "/api/v1/generate", "/v1/chat/completions"]), body=JSON
)
def test_no_json_ever_gives_a_server_error(client: FlaskClient, path: str, body: Any) -> None:
    if isinstance(body, dict):
        body = {**body, "max_tokens": 1} if path != "/api/v1/prompt" else body
    response = client.post(path, data=json.dumps(body), content_type="application/json")
    assert response.status_code < 500
