import itertools

from hypothesis import given
from hypothesis import strategies as st

from vistrald.engine.text import TextOutput


def run(pieces: list[bytes], stop: list[str]) -> tuple[list[str], bool]:
    output = TextOutput(stop)
    shown = []
    for piece in pieces:
        shown.append(output.push(piece))
        if output.stopped:
            break
    return [*shown, output.finish()], output.stopped


def test_a_letter_split_over_tokens_comes_whole() -> None:
    data = "Ёж 🦔".encode()
    shown, _ = run([data[i : i + 1] for i in range(len(data))], [])
    assert "".join(shown) == "Ёж 🦔"
    assert all("\ufffd" not in piece for piece in shown)


def test_a_letter_begun_and_not_ended_is_dropped() -> None:
    shown, _ = run(["да".encode() + "н".encode()[:1]], [])
    assert "".join(shown) == "да"


def test_a_stop_string_over_token_borders_is_never_shown() -> None:
    shown, stopped = run([b"Answer: 42", b" EN", b"D OF", b" TEXT", b" more"], ["END OF TEXT"])
    assert ("".join(shown), stopped) == ("Answer: 42 ", True)
    assert not any("EN" in piece for piece in shown)


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    shown, stopped = run([b"a E", b"N", b"X"], ["END"])
    assert ("".join(shown), stopped) == ("a ENX", False)


def test_held_back_text_is_shown_at_the_end() -> None:
    assert run([b"the EN"], ["END"]) == (["the ", "EN"], False)


@given(st.text(alphabet="абa\n🦔", max_size=40), st.data())
def test_any_cut_of_the_bytes_gives_the_same_text(text: str, data: st.DataObject) -> None:
    stop = data.draw(st.lists(st.text(alphabet="абa\n🦔", min_size=1, max_size=4), max_size=3))
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=len(raw))))
    borders = [0, *cuts, len(raw)]
    pieces = [raw[a:b] for a, b in itertools.pairwise(borders)]
    shown, stopped = run(pieces, stop)
    joined = "".join(shown)
    assert text.startswith(joined)
    assert not any(string in joined for string in stop)
    assert stopped == any(string in text for string in stop)
    if not stopped:
        assert joined == text
