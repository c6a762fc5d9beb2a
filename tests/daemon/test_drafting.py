"""Guesses: where they come from, which are worth it, and that answers do not change by them."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.daemon.conftest import ENGINE
from tests.daemon.helpers import running
from tests.daemon.test_engine import QUESTIONS, answer
from vistrald.engine import llama
from vistrald.engine.drafting import (
    LONGEST_MATCH,
    NGRAM,
    PROBE_STEPS,
    Draft,
    Drafter,
    Lookup,
    Odds,
    share_out,
)
from vistrald.engine.engine import Engine
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.sampling import Sampling
from vistrald.engine.sequence import Result, Stream
from vistrald.engine.template import Message

# --- Lookup -------------------------------------------------------------------


def test_what_followed_the_same_tokens_is_guessed() -> None:
    assert Lookup().draft([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == Draft([4, 5], 3)


def test_the_longest_match_wins_over_the_latest() -> None:
    tokens = [7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 1, 2, 3]
    assert Lookup().draft(tokens, 1) == Draft([4], 4)


def test_of_equal_matches_the_latest_wins() -> None:
    assert Lookup().draft([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == Draft([5], 3)


def test_nothing_is_guessed_where_nothing_agrees() -> None:
    assert Lookup().draft([1, 2, 3, 4, 5], 4) == Draft([], 0)
    assert Lookup().draft([1], 4) == Draft([], 0)


def longest_earlier_match(tokens: list[int]) -> int:
    """By trying all places."""
    size = len(tokens)
    matches = [
        sum(1 for _ in itertools.takewhile(
            lambda n, end=end: tokens[end - 1 - n] == tokens[size - 1 - n],
            range(min(end, LONGEST_MATCH)),
        ))
        for end in range(NGRAM, size)
    ]  # fmt: skip
    return max((match for match in matches if match >= NGRAM), default=0)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 8), st.integers(1, 7))
def test_drafts_of_a_growing_text_are_what_stands_there(
    tokens: list[int], limit: int, step: int
) -> None:
    lookup = Lookup()
    for size in range(1, len(tokens) + 1, step):
        text = tokens[:size]
        draft = lookup.draft(text, limit)
        # Four kinds of tokens: in so short a text no place is beyond CANDIDATES often enough.
        assert draft.match <= longest_earlier_match(text)
        assert bool(draft.tokens) == (longest_earlier_match(text) > 0)
        if draft.tokens:
            assert len(draft.tokens) <= limit
            quoted = [*text[size - draft.match :], *draft.tokens]
            assert any(text[at : at + len(quoted)] == quoted for at in range(size))


# --- Odds and costs -----------------------------------------------------------


def test_odds_are_learned_by_the_length_of_the_match() -> None:
    odds = Odds()
    long, short = Draft([1] * 4, 16), Draft([1], 3)
    for _ in range(100):
        odds.note(long, 4)
        odds.note(short, 0)
    assert odds.survival(long)[-1] > 0.9
    assert odds.survival(short) == [pytest.approx(0, abs=0.1)]


def test_only_the_first_wrong_guess_is_judged() -> None:
    odds = Odds()
    for _ in range(100):
        odds.note(Draft([1, 2], 15), 0)  # the second would fall into the next bucket
    assert odds.survival(Draft([1], 16)) == Odds().survival(Draft([1], 16))


def free(_: int) -> float:
    """Reading the weights is all that takes time."""
    return 1.0


def proportional(tokens: int) -> float:
    """Computing is all that takes time."""
    return float(tokens)


def test_free_guesses_are_all_taken_and_proportional_ones_none() -> None:
    survival = [[0.9, 0.8], [0.5]]
    assert share_out(survival, 8, free) == [2, 1]
    assert share_out(survival, 8, proportional) == [0, 0]


def test_the_likeliest_guesses_go_first_within_the_limit() -> None:
    assert share_out([[0.9, 0.8, 0.3], [0.7], []], 3, free) == [2, 1, 0]


def test_a_step_in_the_costs_is_stayed_below() -> None:
    assert share_out([[0.9] * 8], 8, lambda tokens: 1.0 if tokens <= 4 else 9.0) == [3]


def test_nothing_is_guessed_while_costs_are_unknown() -> None:
    assert share_out([[1.0]], 8, lambda _: None) == [0]


def test_guesses_that_do_not_pay_are_left_out_but_tried_now_and_then() -> None:
    drafter = Drafter(4, proportional)
    lengths = [len(drafter.choose([Draft([1, 2], 3)])[0].tokens) for _ in range(2 * PROBE_STEPS)]
    assert lengths.count(2) == 2
    assert set(lengths) == {0, 2}


# --- Engine -------------------------------------------------------------------

QUOTES = "Article 158. Theft is the secret taking of another's property by a thief in the night. "


def guessing(engine: Engine) -> Engine:
    """As on a machine where a step's time is that of reading the weights."""
    engine.rates.note(0, 1, 1.0)
    engine.rates.note(0, 16, 1.0)
    engine.rates.note = lambda *_: None  # type: ignore[method-assign]
    return engine


def quoting_prompts(encoder: PromptEncoder) -> list[list[int]]:
    return [
        encoder.encode_messages(
            [Message("system", QUOTES * 2), Message("user", f"{question} Quote article 158.")]
        )
        for question in QUESTIONS
    ]


def result_of(stream: Stream) -> Result:
    assert stream.result is not None
    return stream.result


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_answers_are_those_of_plain_decode(
    model: llama.Model, encoder: PromptEncoder, temperature: float
) -> None:
    """Token for token: with a seed, also where tokens are drawn. q8_0: one attention kernel."""
    settings = ENGINE.model_copy(update={"kv_type": "q8_0"})
    sampling = Sampling(64, temperature=temperature, seed=3)
    plain = settings.model_copy(update={"draft_tokens": 0})
    prompts = quoting_prompts(encoder)
    with running(model, plain) as engine:
        expected = [answer(engine.submit(tokens, sampling)) for tokens in prompts]
    with running(model, settings) as engine:
        guessing(engine)
        streams = [engine.submit(prompts[0], sampling)]
        found = [answer(streams[0])]
        streams += [engine.submit(tokens, sampling) for tokens in prompts[1:]]
        found += [answer(stream) for stream in streams[1:]]
    assert found == expected
    timings = [result_of(stream).timings for stream in streams]
    assert all(t.draft_n >= t.draft_n_accepted for t in timings)
    assert sum(t.draft_n_accepted for t in timings) > 20
    assert sum(t.draft_n - t.draft_n_accepted for t in timings) > 20  # wrong ones were undone


def test_a_quoting_answer_takes_fewer_steps(model: llama.Model, encoder: PromptEncoder) -> None:
    with running(model, ENGINE) as engine:
        guessing(engine)
        steps = 0
        decode = engine._context.decode

        def counted(entries: list[llama.Entry]) -> llama.Decoded:
            nonlocal steps
            steps += 1
            return decode(entries)

        engine._context.decode = counted  # type: ignore[method-assign, assignment]
        stream = engine.submit(quoting_prompts(encoder)[0], Sampling(64))
        answer(stream)
    timings = result_of(stream).timings
    assert timings.predicted_n - timings.draft_n_accepted < steps
    assert steps < 0.7 * timings.predicted_n


def test_guesses_end_where_the_answer_does(model: llama.Model, encoder: PromptEncoder) -> None:
    """max_tokens, a stop string and the context's end hold in the middle of a draft."""
    prompt = quoting_prompts(encoder)[0]
    settings = ENGINE.model_copy(update={"context_tokens": 256})
    with running(model, settings) as engine:
        guessing(engine)
        whole = answer(engine.submit(prompt, Sampling(64)))
        for count in range(1, 12):
            stream = engine.submit(prompt, Sampling(count))
            assert whole.startswith(answer(stream))
            assert result_of(stream).completion_tokens == count
        stop = whole[len(whole) // 2 :][:6]
        stopped = answer(engine.submit(prompt, Sampling(64, stop=(stop,))))
        assert stopped == whole[: whole.index(stop)]
        filling = engine.submit(prompt, Sampling(10_000))
        answer(filling)
        ended = result_of(filling)
        assert ended.prompt_tokens + ended.completion_tokens <= 256


def test_wrong_guesses_leave_no_cells(model: llama.Model, encoder: PromptEncoder) -> None:
    """What the memory holds is what the scheduler counts, after drafts that mostly fail."""
    chance = random.Random(5)
    with running(model, ENGINE) as engine:
        guessing(engine)
        assert engine._drafter is not None
        find, choose = engine._drafter.find, engine._drafter.choose
        engine._drafter.choose = lambda drafts: drafts  # type: ignore[method-assign]
        # Guesses at random places, of which the model accepts next to none.
        engine._drafter.find = lambda request: Draft(  # type: ignore[method-assign]
            chance.sample(request.tokens, min(request.left - 1, 3)), 32
        )
        streams = [engine.submit(tokens, Sampling(32)) for tokens in quoting_prompts(encoder)]
        for stream in streams:
            answer(stream)
        engine._drafter.find, engine._drafter.choose = find, choose  # type: ignore[method-assign]
        timings = [result_of(stream).timings for stream in streams]
        assert sum(t.draft_n for t in timings) > 100
        held = engine.used_cells
        again = [engine.submit(tokens, Sampling(1)) for tokens in quoting_prompts(encoder)]
        for stream in again:
            answer(stream)
        assert engine.used_cells == held
        memory = llama.C.llama_get_memory(engine._context.handle)
        for node in engine._scheduler.cache._nodes:
            assert llama.C.llama_memory_seq_pos_max(memory, node.sequence) == node.end - 1


def test_no_speculation_by_configuration(model: llama.Model, encoder: PromptEncoder) -> None:
    with running(model, ENGINE.model_copy(update={"draft_tokens": 0})) as engine:
        guessing(engine)
        stream = engine.submit(quoting_prompts(encoder)[0], Sampling(48))
        answer(stream)
    assert result_of(stream).timings.draft_n == 0
    assert not math.isnan(result_of(stream).timings.predicted_per_second)
