"""What the servers stream, as they stream it, read back."""

import json
from typing import Any

import pytest

from bench.load import AskError, parse


def line(at: float, **event: Any) -> tuple[float, bytes]:
    return at, b"data: " + json.dumps(event).encode()


def text(at: float, content: str, **more: Any) -> tuple[float, bytes]:
    return line(at, choices=[{"index": 0, "delta": {"content": content}}], **more)


FIRST = line(10.1, choices=[{"delta": {"role": "assistant", "content": None}}])
LAST = line(12.1, choices=[{"delta": {}, "finish_reason": "stop"}])
DONE = (12.2, b"data: [DONE]")


def test_times_are_those_of_text() -> None:
    answer = parse(10, [FIRST, (10.2, b""), text(11, "The "), text(12, "law."), LAST, DONE])
    assert (answer.text, answer.ttft, answer.latency) == ("The law.", 1, 2)


def test_tokens_are_counted_by_the_text_where_nothing_is_said() -> None:
    """llama_cpp.server."""
    answer = parse(10, [FIRST, text(11, "a"), text(12, "b"), text(13, "c"), DONE])
    assert (answer.tokens, answer.decode_rate) == (3, 1)


def test_tokens_are_the_servers_word() -> None:
    """A piece may hold several tokens: vistrald's, and llama-server's with drafts."""
    timings = {"predicted_n": 9, "draft_n": 6, "draft_n_accepted": 5}
    end = line(12.1, choices=[{"delta": {}, "finish_reason": "stop"}], timings=timings)
    usage = line(12.2, choices=[], usage={"completion_tokens": 9, "prompt_tokens": 5})
    answer = parse(10, [FIRST, (10.5, b": ping"), text(11, "a"), text(13, "bc"), end, usage, DONE])
    assert (answer.tokens, answer.decode_rate) == (9, 4)
    assert (answer.drafted, answer.accepted) == (6, 5)


def test_a_rate_needs_two_tokens() -> None:
    assert parse(10, [text(11, "a")]).decode_rate == 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [([FIRST, DONE], "no text"), ([line(1, error={"code": "queue_full"})], "queue_full")],
)
def test_what_is_no_answer_is_an_error(lines: list[tuple[float, bytes]], message: str) -> None:
    with pytest.raises(AskError, match=message):
        parse(10, lines)
