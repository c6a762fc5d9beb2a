"""Saved prefixes: what is whole and of this key is used, anything else is a miss."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.conftest import ENGINE
from tests.daemon.helpers import running, wait_until
from tests.daemon.test_engine import answer, long_prompt, prompt
from vistrald.engine import llama
from vistrald.engine.disk_cache import HEADER_BYTES, DiskCache
from vistrald.engine.engine import Engine, StoppedError
from vistrald.engine.prefix_cache import common_prefix
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.sampling import Sampling
from vistrald.engine.sequence import Result

TOKENS = list(range(100))
STATE = bytes(range(256)) * 8
Buffer = ctypes.Array[ctypes.c_uint8]


def fill(buffer: Buffer) -> bool:
    ctypes.memmove(buffer, STATE, len(STATE))
    return True


def save(cache: DiskCache, tokens: list[int]) -> None:
    cache.save(tokens, len(STATE), fill)
    cache.wait()


def loaded(cache: DiskCache, tokens: list[int]) -> bytes | None:
    found: list[bytes] = []

    def use(buffer: Buffer) -> bool:
        found.append(bytes(buffer))
        return True

    return found[0] if cache.load(tokens, use) else None


def test_what_was_saved_is_there_for_the_next_process(tmp_path: Path) -> None:
    save(DiskCache(tmp_path, "key", 10**6), TOKENS)
    cache = DiskCache(tmp_path, "key", 10**6)
    assert cache.covers([*TOKENS, 7]) == 100
    assert cache.covers(TOKENS[:99]) == 0
    assert cache.covers([9, *TOKENS[1:]]) == 0
    assert loaded(cache, TOKENS) == STATE


def test_the_longest_saved_prefix_is_found(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, "key", 10**6)
    for length in (20, 60):
        save(cache, TOKENS[:length])
    assert [cache.covers(TOKENS[:n]) for n in (10, 20, 59, 60, 100)] == [0, 20, 20, 60, 60]


def test_another_key_sees_nothing(tmp_path: Path) -> None:
    save(DiskCache(tmp_path, "model-a q8_0 0.3.36", 10**6), TOKENS)
    other = DiskCache(tmp_path, "model-a f16 0.3.36", 10**6)
    assert other.covers(TOKENS) == 0
    assert loaded(other, TOKENS) is None
    # A rollback finds its own again.
    assert DiskCache(tmp_path, "model-a q8_0 0.3.36", 10**6).covers(TOKENS) == 100


@pytest.mark.parametrize("at", [0, 10, HEADER_BYTES, HEADER_BYTES + 50, HEADER_BYTES + 500, -1])
def test_a_changed_byte_is_a_miss_and_the_file_goes(tmp_path: Path, at: int) -> None:
    save(DiskCache(tmp_path, "key", 10**6), TOKENS)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    cache = DiskCache(tmp_path, "key", 10**6)
    assert loaded(cache, TOKENS) is None
    assert cache.covers(TOKENS) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [0, 10, HEADER_BYTES, HEADER_BYTES + 401])
def test_a_truncated_file_is_a_miss(tmp_path: Path, length: int) -> None:
    cache = DiskCache(tmp_path, "key", 10**6)
    save(cache, TOKENS)
    (path,) = tmp_path.iterdir()
    os.truncate(path, length)
    assert loaded(cache, TOKENS) is None
    assert cache.covers(TOKENS) == 0


def test_a_file_under_anothers_name_is_a_miss(tmp_path: Path) -> None:
    """Even with a right checksum: the tokens in the file are compared."""
    cache = DiskCache(tmp_path, "key", 10**6)
    save(cache, TOKENS)
    save(cache, TOKENS[:50])
    whole, half = (tmp_path / cache._name(tokens) for tokens in (TOKENS, TOKENS[:50]))
    half.rename(whole)
    assert loaded(cache, TOKENS) is None


def test_the_cap_removes_the_least_recently_used(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, "key", 10**6)
    for length in (20, 40, 60):
        save(cache, TOKENS[:length])
    for age, length in ((300, 20), (200, 40), (100, 60)):
        path = tmp_path / cache._name(TOKENS[:length])
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    assert loaded(cache, TOKENS[:20])
    small = DiskCache(tmp_path, "key", 2 * (len(STATE) + HEADER_BYTES + 400))
    assert [small.covers(TOKENS[:n]) for n in (20, 40, 60)] == [20, 20, 60]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_exceeds_the_cap_is_not_saved(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, "key", len(STATE))
    save(cache, TOKENS)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = DiskCache(tmp_path, "key", 10**6)
    save(cache, TOKENS)
    assert cache.covers(TOKENS) == 0
    assert not list(tmp_path.iterdir())


WRITER = """
import sys
from pathlib import Path
from vistrald.engine.disk_cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), "key", 10**9)
def fill(buffer):
    print("filling", flush=True)
    sys.stdin.read() if sys.argv[2] == "fill" else None
    return True
cache.save(list(range(100)), 50_000_000, fill)
print("syncing", flush=True)
cache.wait()
"""


@pytest.mark.parametrize(("phase", "line"), [("fill", "filling\n"), ("sync", "syncing\n")])
def test_kill_9_in_the_middle_of_a_write_leaves_nothing_wrong(
    tmp_path: Path, phase: str, line: str
) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), phase],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    while writer.stdout.readline() != line:
        assert writer.poll() is None
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    cache = DiskCache(tmp_path, "key", 10**9)
    assert not list(tmp_path.glob("*.part"))
    # Either it had come as far as its name, then it is whole, or it is not there.
    assert (cache.covers(TOKENS) == 100) == (loaded(cache, TOKENS) is not None)
    if phase == "fill":
        assert not list(tmp_path.iterdir())


def test_evictions_and_damage_are_counted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, "key", 2 * (len(STATE) + HEADER_BYTES + 400))
    for length in (20, 40, 60):
        save(cache, TOKENS[:length])
    assert (cache.files, cache.evictions, cache.damaged) == (2, 1, 0)
    assert cache.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    os.truncate(tmp_path / cache._name(TOKENS[:60]), 10)
    assert loaded(cache, TOKENS[:60]) is None
    assert (cache.files, cache.damaged) == (1, 1)


# --- With the engine ------------------------------------------------------------

DOCUMENT = "Article 158. Theft is the secret taking of another's property. " * 8
Q8 = ENGINE.model_copy(update={"kv_type": "q8_0"})


def keep(engine: Engine, tokens: list[int]) -> None:
    answer(engine.keep(tokens))
    assert engine.disk is not None
    engine.disk.wait()
    assert not engine.disk.failure


def ask(engine: Engine, tokens: list[int]) -> tuple[str, Result]:
    stream = engine.submit(tokens, Sampling(8))
    text = answer(stream)
    assert stream.result is not None
    return text, stream.result


def shared(prompts: list[list[int]]) -> list[int]:
    return prompts[0][: common_prefix(prompts[0], prompts[1])]


def test_requests_that_arrive_together_load_a_document_once(
    model: llama.Model, encoder: PromptEncoder, tmp_path: Path
) -> None:
    prompts = [prompt(encoder, f"{DOCUMENT} Question {number}?") for number in range(3)]
    with running(model, Q8, DiskCache(tmp_path, "key", 10**9)) as engine:
        keep(engine, shared(prompts))
    disk = DiskCache(tmp_path, "key", 10**9)
    context = llama.Context(model, Q8, threads=1)
    engine = Engine(model, context, Q8, disk=disk)
    # A prompt that is on disk can be computed in time, though at this rate not anew.
    engine.rates.note(100, 0, 1000)
    streams = [engine.submit(tokens, Sampling(2), 500) for tokens in prompts]
    while engine.step():
        pass
    for stream in streams:
        answer(stream)
    timings = [stream.result.timings for stream in streams if stream.result]
    assert sorted(bool(each.disk_n) for each in timings) == [False, False, True]
    assert all(each.cache_n > 100 for each in timings)
    context.close()


def test_a_kept_document_is_taken_from_disk_after_a_restart(
    model: llama.Model, encoder: PromptEncoder, tmp_path: Path
) -> None:
    questions = ["What is theft?", "Who is the owner?", "Is a document property?"]
    prompts = [prompt(encoder, DOCUMENT + question) for question in questions]
    with running(model, Q8) as engine:
        expected = [ask(engine, tokens)[0] for tokens in prompts]
    with running(model, Q8, DiskCache(tmp_path, "key", 10**9)) as engine:
        keep(engine, shared(prompts))
    with running(model, Q8, DiskCache(tmp_path, "key", 10**9)) as engine:
        text, result = ask(engine, prompts[2])
        assert text == expected[2]
        assert result.timings.disk_n == result.timings.cache_n == len(shared(prompts))
        text, again = ask(engine, prompts[0])
        assert text == expected[0]
        assert (again.timings.disk_n, again.timings.cache_n) == (0, result.timings.cache_n)
        engine._scheduler.cache.clear()
        assert engine.used_cells == 0
    (path,) = tmp_path.glob("*.kv")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with running(model, Q8, DiskCache(tmp_path, "key", 10**9)) as engine:
        text, result = ask(engine, prompts[2])
        assert (text, result.timings.cache_n) == (expected[2], 0)


def test_what_people_ask_never_reaches_the_disk(
    model: llama.Model, encoder: PromptEncoder, tmp_path: Path
) -> None:
    """Not even when they share it, or ask it twice: only what was asked to be kept does."""
    with running(model, Q8, DiskCache(tmp_path, "key", 10**9)) as engine:
        for question in ("What is theft?", "Who is the owner?", "What is theft?"):
            ask(engine, prompt(encoder, DOCUMENT + question))
    assert not list(tmp_path.iterdir())


def test_the_size_of_a_state_is_foretold(
    model: llama.Model, vocabulary: llama.Vocabulary, tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path, "key", 10**9)
    context = llama.Context(model, Q8, threads=1)
    engine = Engine(model, context, Q8, disk=disk)
    engine.warm_up()
    tokens = long_prompt(vocabulary, 500)
    engine.keep(tokens)
    while engine.step():
        pass
    disk.wait()
    assert abs(disk.bytes / (engine.token_bytes * 500) - 1) < 0.02
    context.close()


def test_a_person_comes_before_what_is_kept(
    model: llama.Model, vocabulary: llama.Vocabulary, tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path, "key", 10**9)
    context = llama.Context(model, ENGINE, threads=1)
    engine = Engine(model, context, ENGINE, disk=disk)
    engine.rates.note(1000, 0, 1.0)
    tokens = long_prompt(vocabulary, 700)
    kept = engine.keep(tokens)
    for _ in range(2):
        engine.step()
    person = engine.submit(long_prompt(vocabulary, 20), Sampling(4))
    while not person.ended:
        engine.step()
        list(itertools.takewhile(bool, person.poll(0)))
    assert not kept.ended
    assert not disk.files
    while engine.step():
        pass
    disk.wait()
    answer(kept)
    assert kept.result is not None
    # The person's prompt took nothing of it that had to be computed again.
    assert kept.result.timings.prompt_n <= 700 - 2 * 128
    assert disk.covers([*tokens, 0]) == 700
    context.close()


def test_a_person_does_not_wait_for_a_batch_of_what_is_kept(
    model: llama.Model, vocabulary: llama.Vocabulary, tmp_path: Path
) -> None:
    disk = DiskCache(tmp_path, "key", 10**9)
    with running(model, ENGINE, disk) as engine:
        engine.keep(long_prompt(vocabulary, 700))
        wait_until(lambda: engine.running)
        decode, outcomes = engine._context.decode, []

        def noting(entries: Any) -> llama.Decoded:
            outcomes.append(decode(entries))
            return outcomes[-1]

        engine._context.decode = noting  # type: ignore[method-assign]
        wait_until(lambda: outcomes)
        answer(engine.submit(long_prompt(vocabulary, 20), Sampling(1)))
        assert llama.Decoded.ABORTED in outcomes


def test_what_is_kept_ends_at_once_where_requests_end(
    model: llama.Model, vocabulary: llama.Vocabulary, tmp_path: Path
) -> None:
    with running(model, ENGINE, DiskCache(tmp_path, "key", 10**9)) as engine:
        streams = [engine.keep(long_prompt(vocabulary, 700)) for _ in range(2)]
        wait_until(lambda: engine.running)
        engine.refuse()
        for stream in streams:
            answer(stream)
            assert stream.result is not None
            assert stream.result.finish_reason == "cancelled"
        with pytest.raises(StoppedError):
            engine.keep([1])
    assert not list(tmp_path.glob("*.kv"))
