"""Deadlines: estimates and sentence ends as pure functions, then the engine and the interfaces.

No test measures the machine's speed: rates are given, and time is made to pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from tests.daemon.conftest import ENGINE
from tests.daemon.helpers import events
from tests.daemon.test_engine import answer, long_prompt
from tests.daemon.test_openapi import check
from vistrald.engine import llama
from vistrald.engine.deadline import (
    Load,
    Rates,
    answer_tokens,
    full_sentences,
    prefill_chunk,
    prefill_seconds,
)
from vistrald.engine.engine import Engine
from vistrald.engine.sampling import Sampling
from vistrald.engine.scheduler import Batch
from vistrald.engine.sequence import DeadlineUnreachableError
from vistrald.service import Service


def measured(prefill: float = 20, step: float = 0.5) -> Rates:
    """20 tokens/s of prefill and 2 of decode: a 24B model on 8 cores."""
    rates = Rates()
    rates.note(100, 0, 100 / prefill)
    rates.note(0, 1, step)
    return rates


def passing(engine: Engine, seconds: float) -> None:
    """Each batch takes so long, whatever is in it."""

    def note(_batch: Batch, _seconds: float) -> None:
        for sequence in engine._scheduler.running:
            sequence.submitted -= seconds

    engine.rates = measured(prefill=1e6, step=seconds)
    engine._note_rates = note  # type: ignore[method-assign]


# --- Estimates ----------------------------------------------------------------


def test_nothing_is_known_before_it_was_measured() -> None:
    assert prefill_seconds(Rates(), 1000, Load()) is None
    assert answer_tokens(Rates(), 10, Load()) is None


def test_prefill_alone_and_beside_others() -> None:
    rates = measured()
    assert prefill_seconds(rates, 200, Load()) == pytest.approx(10)
    # Another prompt of 100 tokens takes 5 s more.
    assert prefill_seconds(rates, 200, Load(prefill_tokens=100)) == pytest.approx(15)
    # In pieces of 32, each with a decode step of 0.5 s: 7 of them.
    assert prefill_seconds(rates, 200, Load(decoding=1)) == pytest.approx(13.5)


def test_answer_tokens_by_the_number_of_sequences() -> None:
    rates = measured()
    rates.note(0, 2, 0.8)
    assert answer_tokens(rates, 8, Load()) == 17
    assert answer_tokens(rates, 8, Load(decoding=1)) == 11
    assert answer_tokens(rates, 8, Load(decoding=3)) == 6  # never measured: 2 x 0.8 s
    assert answer_tokens(rates, 0, Load()) == 1  # it comes with prefill


def test_a_steps_time_lies_on_a_line_between_measured_ones() -> None:
    rates = measured(step=0.5)
    rates.note(0, 4, 0.8)
    assert rates.step(2) == pytest.approx(0.6)
    assert rates.step(8) == pytest.approx(1.6)


def test_a_batch_of_prefill_is_as_long_as_a_newcomer_and_running_answers_can_bear() -> None:
    assert prefill_chunk(Rates(), 0, 512) == 32  # nothing is known
    slow = measured(prefill=20, step=0.35)
    assert prefill_chunk(slow, 0, 512) == 40  # 2 s
    assert prefill_chunk(slow, 1, 512) == 28  # 4 steps
    fast = measured(prefill=400, step=0.01)
    assert prefill_chunk(fast, 0, 512) == 512
    assert prefill_chunk(fast, 1, 512) == 100  # a quarter of a second
    assert prefill_chunk(measured(prefill=2), 0, 512) == 16  # fewer would mostly read weights


def test_rates_follow_the_machine() -> None:
    rates = measured(prefill=20)
    for _ in range(30):
        rates.note(64, 0, 64 / 5)
        rates.note(0, 1, 2.0)
    assert rates.prefill == pytest.approx(5, rel=0.01)
    assert rates.step(1) == pytest.approx(2, rel=0.01)


def test_a_batch_of_few_tokens_says_nothing_of_prefill() -> None:
    rates = Rates()
    rates.note(1, 0, 5)
    assert rates.prefill is None


def test_decode_tokens_in_a_mixed_batch_are_not_charged_to_prefill() -> None:
    rates = Rates()
    rates.note(0, 2, 1.0)
    rates.note(30, 2, 4.0)
    assert rates.prefill == pytest.approx(10)


# --- Sentence ends --------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Кража наказывается штрафом.| Размер штрафа зави",
        "Кража — это тайное хищение (ст. 158 УК РФ).| Наказание — штраф до 80 тыс. руб. или",
        "Да!| Но в соответствии с п. 3 ч. 2 ст. 158",
        "Что делать?| Обратитесь в суд по ул. Мира, д. 5",
        "Он сказал: «Не виновен.»| Суд не",
        "В 2020 г. Суд решил иначе.| В 2021 г.",
        "Иск подал А. С. Петров.| Ответчик И. И.",
        "Статья вступила в силу в 2020.| Затем она",
        "Порядок таков.|\n1. Подать заявление\n2.",
        "Сумма равна 3.5 млн руб. и не облагается.| Налог",
        "Так и есть…| Однако",
        "Theft is a crime.| See Art. 158 of the code, e.g. the part",
        "Mr. Smith was fined.| Dr. Jones",
        "Верно ли это?!| Нет",
        "Штраф, арест и т. д. Суд выбирает.| Он",
        "Конец.|",
        "нет ни одного конца|",
        "см. ст. 158|",
        "|",
    ],
)
def test_the_last_full_sentence(text: str) -> None:
    end = text.index("|")
    assert full_sentences(text.replace("|", "")) == end


@given(st.text(alphabet="аБ1 .!\n»(", max_size=40))
def test_a_cut_is_in_the_text_and_stays_where_it_is(text: str) -> None:
    end = full_sentences(text)
    assert 0 <= end <= len(text)
    assert full_sentences(text[:end]) <= end


# --- Engine -----------------------------------------------------------------------


def unreachable(engine: Engine, tokens: list[int], seconds: float) -> DeadlineUnreachableError:
    with pytest.raises(DeadlineUnreachableError) as caught:
        engine.submit(tokens, Sampling(5), seconds)
    return caught.value


def test_max_tokens_is_shortened_to_what_fits(engine: Engine, vocabulary: llama.Vocabulary) -> None:
    # 100 s a step: a deadline of 350 s lets three tokens follow the first.
    passing(engine, 100)
    stream = engine.submit(long_prompt(vocabulary, 20), Sampling(50), 350)
    answer(stream)
    assert stream.result is not None
    assert stream.result.completion_tokens == 4
    assert (stream.result.finish_reason, stream.result.ended_by) == ("length", "deadline")


@pytest.mark.parametrize("room", [True, False])
def test_a_shortened_answer_goes_on_when_time_turns_out_to_be_left(
    model: llama.Model, vocabulary: llama.Vocabulary, room: bool
) -> None:
    """As when others end: the steps that are measured take less than those it was planned by."""
    with stepped(model) as engine:
        engine.rates = measured(prefill=1e6, step=100)
        stream = engine.submit(long_prompt(vocabulary, 20), Sampling(50), 350)
        engine.step()
        if not room:  # another has reserved all the cells that are left
            other = long_prompt(vocabulary, 20)[::-1]
            engine.submit(other, Sampling(ENGINE.context_tokens - 24 - len(other)))
        for _ in range(60):
            engine.step()
        engine.cancel_all()
        engine.step()
        answer(stream)
    assert stream.result is not None
    ended = (stream.result.completion_tokens, stream.result.ended_by)
    assert ended == ((50, None) if room else (4, "deadline"))


def test_a_request_without_deadline_is_not_shortened(
    engine: Engine, vocabulary: llama.Vocabulary
) -> None:
    engine.rates = measured(prefill=0.001, step=1000)
    stream = engine.submit(long_prompt(vocabulary, 20), Sampling(5), None)
    answer(stream)
    assert stream.result is not None
    assert (stream.result.completion_tokens, stream.result.ended_by) == (5, None)


def test_nothing_is_refused_before_a_rate_was_measured(
    engine: Engine, vocabulary: llama.Vocabulary
) -> None:
    stream = engine.submit(long_prompt(vocabulary, 500), Sampling(1), 600)
    answer(stream)
    assert stream.result is not None
    assert stream.result.ended_by is None


def test_a_prompt_that_takes_too_long_is_refused_at_once(
    engine: Engine, vocabulary: llama.Vocabulary
) -> None:
    engine.rates = measured(prefill=20)
    error = unreachable(engine, long_prompt(vocabulary, 700), 30)
    assert (error.prompt_tokens, error.cached_tokens, error.busy) == (700, 0, False)
    assert error.seconds == pytest.approx(35)
    assert engine.running == engine.waiting == 0


def test_a_cached_prefix_takes_no_time(engine: Engine, vocabulary: llama.Vocabulary) -> None:
    tokens = long_prompt(vocabulary, 700)
    engine.rates = measured(prefill=20)
    unreachable(engine, tokens, 30)
    answer(engine.submit(tokens, Sampling(1)))
    engine.rates = measured(prefill=20)
    stream = engine.submit(tokens, Sampling(1), 30)
    answer(stream)
    assert stream.result is not None
    assert stream.result.timings.cache_n == 699


@contextmanager
def stepped(model: llama.Model) -> Iterator[Engine]:
    """An engine that works when told to."""
    context = llama.Context(model, ENGINE, threads=1)
    yield Engine(model, context, ENGINE)
    context.close()


def test_an_answer_ends_at_the_deadline(model: llama.Model, vocabulary: llama.Vocabulary) -> None:
    with stepped(model) as engine:
        stream = engine.submit(long_prompt(vocabulary, 20), Sampling(900), 600)
        for _ in range(8):
            engine.step()
        (sequence,) = engine._scheduler.running
        sequence.submitted -= 601
        assert not engine.step()
        text = answer(stream)
    result = stream.result
    assert result is not None
    assert (result.finish_reason, result.ended_by) == ("length", "deadline")
    assert result.completion_tokens == 8
    assert result.complete_chars == full_sentences(text)


def test_a_deadline_that_comes_in_prefill_keeps_what_was_computed(
    model: llama.Model, vocabulary: llama.Vocabulary
) -> None:
    tokens = long_prompt(vocabulary, 700)
    with stepped(model) as engine:
        engine.rates.note(1000, 0, 1.0)
        stream = engine.submit(tokens, Sampling(5), 600)
        engine.step()
        (sequence,) = engine._scheduler.running
        sequence.submitted -= 601
        assert not engine.step()
        with pytest.raises(DeadlineUnreachableError) as caught:
            answer(stream)
        assert caught.value.cached_tokens == 128
        retry = engine.submit(tokens, Sampling(1))
        while engine.step():
            pass
        answer(retry)
        assert retry.result is not None
        assert retry.result.timings.cache_n == 128


def test_a_deadline_aborts_a_prefill_batch(
    model: llama.Model, vocabulary: llama.Vocabulary
) -> None:
    with stepped(model) as engine:
        stream = engine.submit(long_prompt(vocabulary, 700), Sampling(5), 600)
        engine._scheduler.admit()
        (sequence,) = engine._scheduler.running
        sequence.deadline_seconds = 0.001  # comes while the first batch is computed
        batch = engine._scheduler.schedule()
        assert engine._decode(batch) is llama.Decoded.ABORTED
        assert not engine.step()
        with pytest.raises(DeadlineUnreachableError):
            answer(stream)


def test_a_request_whose_deadline_passes_in_the_queue_is_told_so(
    model: llama.Model, vocabulary: llama.Vocabulary
) -> None:
    with stepped(model) as engine:
        tokens = long_prompt(vocabulary, 20)
        for _ in range(ENGINE.parallel_sequences):
            engine.submit(tokens, Sampling(50))
        engine.step()
        late = engine.submit(tokens, Sampling(5), 600)
        engine._scheduler.waiting[0].submitted -= 601
        engine.step()
        with pytest.raises(DeadlineUnreachableError) as caught:
            answer(late)
        assert caught.value.busy
        assert engine.running == ENGINE.parallel_sequences


# --- Interfaces -------------------------------------------------------------------


@pytest.fixture
def slow(service: Service) -> Iterator[None]:
    """The service believes that it prefills 2 tokens/s and decodes one in 10 s."""
    before = service.engine.rates
    service.engine.rates = measured(prefill=2, step=10)
    yield
    service.engine.rates = before


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/v1/stream", "/v1/chat/completions"])
def test_an_unreachable_deadline_is_an_error_with_advice(client: FlaskClient, path: str) -> None:
    text = "Тайное хищение чужого имущества. " * 8 + path
    body = {"prompt": text, "deadline_seconds": 3}
    if "chat" in path:
        message = {"role": "user", "content": text}
        body = {"model": "smollm2-135m", "messages": [message], "deadline_seconds": 3}
    response = client.post(path, json=body)
    assert response.status_code == 422
    error = response.json["error"]
    assert error["code"] == "deadline_unreachable"
    assert "2.0 tokens/s" in error["message"]
    assert "deadline of 3 s" in error["message"]
    assert "about 6 tokens" in error["hint"]
    assert "documents in a stable order" in error["hint"]
    check(client.get("/openapi.json").json, path, response)


@pytest.mark.usefixtures("slow")
def test_best_effort_goes_on(client: FlaskClient) -> None:
    answer = client.post(
        "/api/v1/generate",
        json={
            "prompt": "Открытое хищение. " * 8,
            "deadline_seconds": 3,
            "best_effort": True,
            "max_tokens": 3,
            "temperature": 0,
        },
    ).json
    assert answer["usage"]["completion_tokens"] == 3
    assert (answer["ended_by"], answer["complete_chars"]) == (None, None)


def test_the_deadlines_end_is_told_by_both_interfaces(
    client: FlaskClient, service: Service, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 tokens fit. The stream has sent all of them, the whole answer is cut at its sentence."""
    request: dict[str, Any] = {"prompt": "Tell a story.", "temperature": 0, "max_tokens": 30}
    request["deadline_seconds"] = 450
    monkeypatch.setattr(service.engine, "_note_rates", None)  # and back again afterwards
    passing(service.engine, 100)
    *texts, (_, summary) = events(client.post("/api/v1/stream", json=request).text)
    streamed = "".join(data["text"] for _, data in texts)
    whole = client.post("/api/v1/generate", json=request).json
    message = {"role": "user", "content": request.pop("prompt")}
    body = {"model": "smollm2-135m", "messages": [message], "stream": True, **request}
    chat = client.post("/v1/chat/completions", json=body).text
    assert summary["usage"]["completion_tokens"] == 5
    assert summary["finish_reason"] == whole["finish_reason"] == "length"
    assert summary["ended_by"] == whole["ended_by"] == "deadline"
    assert whole["response"] == streamed[: summary["complete_chars"]]
    ends = [data for _, data in events(chat) if "ended_by" in data]
    assert [end["ended_by"] for end in ends] == ["deadline"]
    metrics = client.get("/metrics").text
    assert "vistrald_deadline_endings_total 0.0" not in metrics
    assert "vistrald_deadline_endings_total" in metrics


@pytest.mark.parametrize("value", [0, -1, 601, "30"])
def test_deadlines_are_bounded(client: FlaskClient, value: object) -> None:
    response = client.post("/api/v1/generate", json={"prompt": "x", "deadline_seconds": value})
    assert response.status_code == 400
    assert "deadline_seconds" in response.json["error"]["message"]
