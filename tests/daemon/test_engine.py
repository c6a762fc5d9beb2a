"""The engine on the real model: parity, batching, cancelling, limits."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import llama_cpp as C  # noqa: N812

from tests.daemon.conftest import ENGINE
from tests.daemon.helpers import wait_until
from vistrald.engine import llama
from vistrald.engine.engine import ContextOverflowError, Engine, QueueFullError, StoppedError
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.sampling import Sampling
from vistrald.engine.sequence import EngineFailedError, Stream
from vistrald.engine.template import Message
from vistrald.settings import EngineSection

QUESTIONS = [
    "What is theft?",
    "Name three colours.",
    "Who wrote War and Peace?",
    "What is the capital of France?",
]


def prompt(encoder: PromptEncoder, question: str) -> list[int]:
    return encoder.encode_messages([Message("user", question)])


def long_prompt(vocabulary: llama.Vocabulary, tokens: int) -> list[int]:
    ids = vocabulary.tokenize("The court heard the case and decided. " * tokens, special=False)
    return ids[:tokens]


@contextmanager
def running(model: llama.Model, settings: EngineSection) -> Iterator[Engine]:
    context = llama.Context(model, settings, threads=1)
    engine = Engine(model, context, settings)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    yield engine
    engine.stop()
    thread.join(timeout=30)
    assert not thread.is_alive()
    context.close()


def logits(context: llama.Context, index: int) -> "np.ndarray[Any, Any]":
    row = C.llama_get_logits_ith(context.handle, index)
    size = C.llama_vocab_n_tokens(C.llama_model_get_vocab(C.llama_get_model(context.handle)))
    return np.ctypeslib.as_array(row, (size,)).copy()


def answer(stream: Stream) -> str:
    return "".join(stream)


def test_greedy_equals_the_high_level_library(
    engine: Engine, encoder: PromptEncoder, model_path: Path, vocabulary: llama.Vocabulary
) -> None:
    reference = llama_cpp.Llama(
        str(model_path), n_ctx=512, n_threads=1, n_batch=128, flash_attn=True, verbose=False
    )
    tokens = prompt(encoder, QUESTIONS[0])
    pieces: list[bytes] = []
    for token in reference.generate(tokens, temp=0, repeat_penalty=1.0):
        if token in vocabulary.end_of_generation or len(pieces) == 48:
            break
        pieces.append(vocabulary.piece(token))
    reference.close()
    assert answer(engine.submit(tokens, Sampling(48))) == b"".join(pieces).decode()


def test_batched_answers_equal_those_alone(
    model: llama.Model, encoder: PromptEncoder, vocabulary: llama.Vocabulary
) -> None:
    """Bit for bit, where the kernels allow: no sequence is touched by another's tokens.

    With f16 KV ggml picks one of three attention kernels by rows and cache length, and they round
    differently (next test). Quantized KV has one kernel, so that a batch changes nothing.
    """
    settings = ENGINE.model_copy(update={"kv_type": "q8_0"})
    prompts = [prompt(encoder, question) for question in QUESTIONS[:3]]
    prompts.append(long_prompt(vocabulary, 200))
    with running(model, settings) as engine:
        alone = [answer(engine.submit(tokens, Sampling(16))) for tokens in prompts]
        streams = [engine.submit(tokens, Sampling(16)) for tokens in prompts]
        assert [answer(stream) for stream in streams] == alone
        # Chunks of a long prefill between the decode steps of a running answer.
        first = engine.submit(prompts[0], Sampling(16))
        start = next(iter(first))
        assert answer(engine.submit(prompts[3], Sampling(16))) == alone[3]
        assert start + answer(first) == alone[0]
    assert len(set(alone)) == len(alone)


def test_batched_logits_with_f16_cache_differ_by_rounding_only(
    model: llama.Model, encoder: PromptEncoder
) -> None:
    """Rounding moves a logit by about 1; another sequence's tokens would move it by 10 and more."""
    context = llama.Context(model, ENGINE.model_copy(update={"batch_tokens": 512}), threads=1)
    prompts = [prompt(encoder, question) for question in QUESTIONS]
    alone = []
    for tokens in prompts:
        context.decode([llama.Entry(t, i, 0, i == len(tokens) - 1) for i, t in enumerate(tokens)])
        alone.append(logits(context, len(tokens) - 1))
        context.forget(0)
    entries = [
        llama.Entry(tokens[i], i, sequence, i == len(tokens) - 1)
        for i in range(max(map(len, prompts)))
        for sequence, tokens in enumerate(prompts)
        if i < len(tokens)
    ]
    context.decode(entries)
    together = {
        entry.sequence: logits(context, at) for at, entry in enumerate(entries) if entry.output
    }
    for sequence, own in enumerate(alone):
        assert abs(together[sequence] - own).max() < 3
        others = [other for other in alone if other is not own]
        assert all(abs(together[sequence] - other).max() > 8 for other in others)
    context.close()


def test_usage_and_timings(engine: Engine, encoder: PromptEncoder) -> None:
    tokens = prompt(encoder, QUESTIONS[0])
    stream = engine.submit(tokens, Sampling(5))
    answer(stream)
    result = stream.result
    assert result is not None
    assert (result.finish_reason, result.completion_tokens) == ("length", 5)
    timings = result.timings
    assert (timings.prompt_n, timings.predicted_n) == (len(tokens), 5)
    assert timings.ttft_ms >= timings.prompt_ms > 0
    assert timings.predicted_per_second > 0


def test_a_seed_repeats_an_answer_and_another_does_not(
    engine: Engine, encoder: PromptEncoder
) -> None:
    tokens = prompt(encoder, QUESTIONS[1])

    def say(seed: int) -> str:
        return answer(engine.submit(tokens, Sampling(24, temperature=1.5, seed=seed)))

    assert say(7) == say(7)
    assert len({say(seed) for seed in range(4)}) > 1


def test_repeat_penalty_changes_the_answer(engine: Engine, encoder: PromptEncoder) -> None:
    tokens = prompt(encoder, QUESTIONS[0])
    plain = answer(engine.submit(tokens, Sampling(48)))
    assert answer(engine.submit(tokens, Sampling(48, repeat_penalty=1.5))) != plain


def test_a_stop_string_over_token_borders(engine: Engine, encoder: PromptEncoder) -> None:
    tokens = prompt(encoder, QUESTIONS[0])
    whole = answer(engine.submit(tokens, Sampling(40)))
    stop = whole[20:33]
    stream = engine.submit(tokens, Sampling(40, stop=(stop,)))
    assert answer(stream) == whole[: whole.index(stop)]
    assert stream.result is not None
    assert stream.result.finish_reason == "stop"


def test_max_tokens_is_lowered_to_what_the_context_holds(
    model: llama.Model, vocabulary: llama.Vocabulary
) -> None:
    with running(model, ENGINE.model_copy(update={"context_tokens": 256})) as engine:
        stream = engine.submit(long_prompt(vocabulary, 253), Sampling(60))
        answer(stream)
        assert stream.result is not None
        assert stream.result.completion_tokens <= 3


def test_a_prompt_beyond_the_context_is_refused(
    engine: Engine, vocabulary: llama.Vocabulary
) -> None:
    with pytest.raises(ContextOverflowError, match="1024 tokens, the limit is 1023"):
        engine.submit(long_prompt(vocabulary, ENGINE.context_tokens), Sampling(1))


def test_a_full_queue_refuses_and_recovers(engine: Engine, encoder: PromptEncoder) -> None:
    tokens = prompt(encoder, QUESTIONS[0])
    capacity = ENGINE.parallel_sequences + ENGINE.queue_length
    streams = [engine.submit(tokens, Sampling(200)) for _ in range(capacity)]
    with pytest.raises(QueueFullError):
        engine.submit(tokens, Sampling(1))
    for stream in streams:
        stream.abandon()
    assert answer(engine.submit(tokens, Sampling(3)))


def test_cancel_while_decoding(engine: Engine, encoder: PromptEncoder) -> None:
    stream = engine.submit(prompt(encoder, QUESTIONS[0]), Sampling(1000))
    next(iter(stream))
    stream.abandon()
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    assert engine.running == 0


def test_cancel_in_the_middle_of_a_prefill_batch(
    model: llama.Model, vocabulary: llama.Vocabulary
) -> None:
    """One batch of 700 tokens takes seconds; the abort callback ends it within a graph node."""
    settings = EngineSection(context_tokens=768, parallel_sequences=2, batch_tokens=768)
    tokens = long_prompt(vocabulary, 700)
    with running(model, settings) as engine:
        began = time.monotonic()
        answer(engine.submit(tokens, Sampling(1)))
        whole = time.monotonic() - began
        stream = engine.submit(tokens, Sampling(1))
        wait_until(lambda: engine.running == 1)
        time.sleep(whole / 10)
        cancelled = time.monotonic()
        stream.abandon()
        took = time.monotonic() - cancelled
        assert stream.result is not None
        assert stream.result.finish_reason == "cancelled"
        assert took < whole / 3
        # Nothing of it stays in the cache: the next request has all of the context.
        follower = engine.submit(tokens, Sampling(1))
        answer(follower)
        assert follower.result is not None
        assert follower.result.finish_reason == "length"


def test_cancel_while_waiting(engine: Engine, encoder: PromptEncoder) -> None:
    tokens = prompt(encoder, QUESTIONS[0])
    running = [engine.submit(tokens, Sampling(300)) for _ in range(ENGINE.parallel_sequences)]
    waiting = engine.submit(tokens, Sampling(300))
    waiting.abandon()
    assert waiting.result is not None
    assert waiting.result.completion_tokens == 0
    for stream in running:
        stream.abandon()


def test_poll_says_when_nothing_came(engine: Engine, vocabulary: llama.Vocabulary) -> None:
    stream = engine.submit(long_prompt(vocabulary, 300), Sampling(1))
    pieces = list(stream.poll(0.01))
    assert pieces.count("") > 1


def test_a_dead_engine_thread_ends_its_streams(model: llama.Model, encoder: PromptEncoder) -> None:
    context = llama.Context(model, ENGINE, threads=1)
    engine = Engine(model, context, ENGINE)
    stream = engine.submit(prompt(encoder, QUESTIONS[0]), Sampling(10))

    def broken(_entries: object) -> llama.Decoded:
        raise llama.LlamaError("broken")

    context.decode = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(llama.LlamaError):
        engine.run()
    with pytest.raises(EngineFailedError):
        answer(stream)
    with pytest.raises(StoppedError):
        engine.submit([1], Sampling(1))
    context.close()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_kv_types_and_loading_by_mmap(model_path: Path, kv_type: str) -> None:
    settings = EngineSection(load_mode="mmap", repack=False, kv_type=kv_type, context_tokens=256)  # type: ignore[arg-type]
    model = llama.Model(model_path, settings)
    context = llama.Context(model, settings, threads=1)
    Engine(model, context, settings).warm_up()
    context.close()
    model.close()


def test_a_context_beyond_the_models_is_refused(model: llama.Model) -> None:
    with pytest.raises(llama.LlamaError, match="9000 exceeds the 8192"):
        llama.Context(model, ENGINE.model_copy(update={"context_tokens": 9000}), threads=1)


def test_a_load_can_be_stopped(model_path: Path) -> None:
    fractions: list[float] = []

    def progress(fraction: float) -> bool:
        fractions.append(fraction)
        return fraction < 0.3

    with pytest.raises(llama.LlamaError):
        llama.Model(model_path, ENGINE, progress)
    assert 0.3 <= fractions[-1] < 1


def test_the_backend_suits_this_processor() -> None:
    library = llama.load_backend()
    flags = Path("/proc/cpuinfo").read_text()
    assert ("AVX512" in llama.cpu_features()) == ("avx512f" in flags)
    assert library.startswith(("ggml-cpu", "built in"))


def test_outputs_take_one_row_of_logits_per_sequence(model: llama.Model) -> None:
    context = llama.Context(model, ENGINE, threads=1)
    assert C.llama_n_seq_max(context.handle) == ENGINE.parallel_sequences
    assert C.llama_n_ubatch(context.handle) == C.llama_n_batch(context.handle)
    context.close()


@pytest.mark.parametrize("run", ["a", " ", "!", "\n", "я"])
def test_long_runs_do_not_overflow_tekkens_pretokenizer(
    model_path: Path, tmp_path: Path, run: str
) -> None:
    """libllama's std::wregex kills the process at about 40,000 letters in a row."""
    data = bytearray(model_path.read_bytes())
    # Same length, so the file stays whole: smollm -> tekken.
    at = data.index(b"smollm", data.index(b"tokenizer.ggml.pre"))
    data[at : at + 6] = b"tekken"
    path = tmp_path / "tekken.gguf"
    path.write_bytes(data)
    model = llama.Model(path, ENGINE)
    text = run * 200_000
    ids = model.vocabulary.tokenize(text, special=False)
    assert b"".join(map(model.vocabulary.piece, ids)).decode() == text
    model.close()


def test_text_with_a_zero_byte_is_tokenized_whole(vocabulary: llama.Vocabulary) -> None:
    ids = vocabulary.tokenize("a\0b", special=False)
    assert b"".join(map(vocabulary.piece, ids)) == b"a\0b"


def test_the_abort_callback_reads_one_byte() -> None:
    """libc's strlen stands in for a callback: its result's low byte is the answer."""
    strlen = ctypes.CDLL(None).strlen
    assert (strlen(b""), strlen(b"\x01")) == (0, 1)
