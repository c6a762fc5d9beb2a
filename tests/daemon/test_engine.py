"""The engine on the real model: parity, batching, cancelling, limits."""

import ctypes
import random
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil
import pytest
from llama_cpp import llama_cpp as C  # noqa: N812

from tests.daemon.conftest import ENGINE
from tests.daemon.helpers import running, wait_until
from vistrald.engine import llama
from vistrald.engine.engine import (
    ContextOverflowError,
    Engine,
    QueueFullError,
    StoppedError,
    UnknownTokenError,
)
from vistrald.engine.prefix_cache import PrefixCache, common_prefix
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.sampling import Sampling
from vistrald.engine.sequence import EngineFailedError, Sequence, Stream
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
    assert (timings.cache_n, timings.prompt_n, timings.predicted_n) == (0, len(tokens), 5)
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


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalties_change_the_answer(engine: Engine, encoder: PromptEncoder, penalty: str) -> None:
    tokens = prompt(encoder, "Count: one, two, one, two, one, two.")
    plain = answer(engine.submit(tokens, Sampling(30)))
    penalised = answer(engine.submit(tokens, Sampling(30, **{penalty: 2.0})))  # type: ignore[arg-type]
    assert plain != penalised
    rewarded = answer(engine.submit(tokens, Sampling(30, **{penalty: -2.0})))  # type: ignore[arg-type]
    assert len(set(rewarded.split())) < len(set(penalised.split()))


def test_logit_bias_forces_and_forbids_a_token(
    engine: Engine, encoder: PromptEncoder, vocabulary: llama.Vocabulary
) -> None:
    tokens = prompt(encoder, "What is theft?")
    (wanted,) = vocabulary.tokenize(" court", special=False)
    assert answer(engine.submit(tokens, Sampling(3, logit_bias=((wanted, 100.0),)))) == " court" * 3
    first = answer(engine.submit(tokens, Sampling(1)))
    (usual,) = vocabulary.tokenize(first, special=False)
    other = answer(engine.submit(tokens, Sampling(1, logit_bias=((usual, -100.0),))))
    assert other != first
    for token in (vocabulary.size, vocabulary.eos):
        with pytest.raises(UnknownTokenError, match=str(token)):
            engine.submit(tokens, Sampling(1, logit_bias=((token, 1.0),)))


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
        answer(engine.submit(tokens[::-1], Sampling(1)))
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
    # The prefix cache's ids are beyond n_seq_max: only a unified cache takes them.
    context.decode([llama.Entry(1, 0, 0, True)])
    context.share(0, llama.SEQUENCE_IDS - 1, 0, 1)
    context.forget(0)
    memory = C.llama_get_memory(context.handle)
    assert C.llama_memory_seq_pos_max(memory, llama.SEQUENCE_IDS - 1) == 0
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


def shared_prompts(encoder: PromptEncoder, seed: int) -> list[list[int]]:
    """Chats over a few documents, some going on from an answer; many with common beginnings."""
    chance = random.Random(seed)
    documents = [
        "Article 158. Theft is the secret taking of another's property. " * 3,
        "Article 158. Theft is the secret taking of a document. " * 3,
        "Article 161. Robbery is the open taking of another's property. " * 3,
    ]
    prompts = []
    for _ in range(10):
        messages = [Message("system", chance.choice(documents))]
        for question in chance.sample(QUESTIONS, chance.randint(1, 2)):
            messages += [Message("user", question), Message("assistant", "Let us see.")]
        prompts.append(encoder.encode_messages(messages[:-1]))
    return prompts


def check_greedy(model: llama.Model, settings: EngineSection, sequence: Sequence) -> None:
    """Each generated token is, but for rounding, the best one after the sequence's own prefix."""
    rows = settings.model_copy(update={"parallel_sequences": 16, "batch_tokens": 512})
    context = llama.Context(model, rows, threads=1)
    start = sequence.prompt_tokens - 1
    tokens = sequence.tokens[:-1]
    context.decode([llama.Entry(token, at, 0, at >= start) for at, token in enumerate(tokens)])
    for at in range(start, len(tokens)):
        row = logits(context, at)
        assert row.max() - row[sequence.tokens[at + 1]] < 1
    context.close()


@pytest.mark.parametrize("seed", range(2))
def test_answers_equal_those_of_an_engine_without_cache(
    model: llama.Model, encoder: PromptEncoder, seed: int
) -> None:
    """Bit for bit with q8_0, as batches are, while no cell is freed, as by wrong guesses."""
    settings = ENGINE.model_copy(
        update={"kv_type": "q8_0", "context_tokens": 4096, "queue_length": 20, "draft_tokens": 0}
    )
    prompts = shared_prompts(encoder, seed)
    plain = settings.model_copy(update={"prefix_cache": False})
    with running(model, plain) as engine:
        # One after the other: cells that are freed between steps would be used out of order.
        expected = [answer(engine.submit(tokens, Sampling(8))) for tokens in prompts]
    with running(model, settings) as engine:
        order = random.Random(seed).sample(range(len(prompts)), len(prompts))
        engine.rates.note(1000, 0, 1.0)
        engine.rates.note = lambda *_: None  # type: ignore[method-assign]
        with engine._changed:  # the same batches each time
            streams = [engine.submit(prompts[at], Sampling(8)) for at in order]
        assert [answer(stream) for stream in streams] == [expected[at] for at in order]
    assert sum(stream.result.timings.cache_n for stream in streams if stream.result) > 300


@pytest.mark.parametrize("seed", range(2))
def test_answers_are_those_of_their_own_prompts_while_cells_are_evicted(
    model: llama.Model, encoder: PromptEncoder, seed: int
) -> None:
    """A context of 512 cells holds a third of what the prompts need, and some are cancelled.

    Not bit for bit: attention adds up in the order of cells, which are not in the order of
    positions once freed ones are used again. That moves a logit by half, another prefix by 8.
    """
    settings = ENGINE.model_copy(
        update={"kv_type": "q8_0", "context_tokens": 512, "queue_length": 20}
    )
    prompts = shared_prompts(encoder, seed)
    chance = random.Random(seed)
    seen: list[Sequence] = []
    cached = 0
    with running(model, settings) as engine:
        add = engine._scheduler.add
        engine._scheduler.add = lambda one: (seen.append(one), add(one))[1]  # type: ignore[method-assign, func-returns-value]
        for _ in range(2):
            streams = [engine.submit(tokens, Sampling(8)) for tokens in chance.sample(prompts, 10)]
            chance.choice(streams).abandon()
            for stream in streams:
                answer(stream)
                assert stream.result is not None
                cached += stream.result.timings.cache_n
    assert cached > 500
    for sequence in seen:
        if sequence.generated:
            check_greedy(model, settings, sequence)


def test_a_running_request_is_shared_from(model: llama.Model, vocabulary: llama.Vocabulary) -> None:
    tokens = long_prompt(vocabulary, 200)
    with running(model, ENGINE) as engine:
        first = engine.submit(tokens, Sampling(400))
        next(iter(first))
        second = engine.submit([*tokens, 5, 6], Sampling(2))
        answer(second)
        assert not first.ended
        first.abandon()
    assert second.result is not None
    assert (second.result.timings.cache_n, second.result.timings.prompt_n) == (200, 2)


def test_a_cancelled_prefill_is_kept_and_a_retry_resumes(
    model: llama.Model, vocabulary: llama.Vocabulary
) -> None:
    tokens = long_prompt(vocabulary, 700)
    context = llama.Context(model, ENGINE, threads=1)
    engine = Engine(model, context, ENGINE)
    engine.rates.note(1000, 0, 1.0)
    first = engine.submit(tokens, Sampling(1))
    engine.step()
    engine.step()
    first.cancel()
    retry = engine.submit(tokens, Sampling(1))
    while engine.step():
        pass
    for stream, expected in ((first, (0, 2 * 128)), (retry, (2 * 128, 700 - 2 * 128))):
        answer(stream)
        assert stream.result is not None
        assert (stream.result.timings.cache_n, stream.result.timings.prompt_n) == expected
    context.close()


def test_many_short_requests_leave_memory_and_cells_flat(
    model: llama.Model, encoder: PromptEncoder
) -> None:
    context = llama.Context(model, ENGINE, threads=1)
    engine = Engine(model, context, ENGINE)
    engine.warm_up()

    def ask(numbers: range) -> None:
        for number in numbers:
            engine.submit(prompt(encoder, f"{number}?"), Sampling(1))
            while engine.step():
                pass
            assert engine.used_cells <= ENGINE.context_tokens

    process = psutil.Process()
    ask(range(60))
    before = process.memory_info().rss
    ask(range(60, 360))
    assert process.memory_info().rss - before < 4e6
    engine._scheduler.cache.clear()
    memory = C.llama_get_memory(context.handle)
    assert all(C.llama_memory_seq_pos_max(memory, at) == -1 for at in range(llama.SEQUENCE_IDS))
    context.close()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_logits_on_shared_cells_are_those_of_the_own_prefix(
    model: llama.Model, encoder: PromptEncoder, kv_type: str
) -> None:
    """Positions included: the cells are put into the cache in another order than they are read."""
    settings = ENGINE.model_copy(update={"kv_type": kv_type})
    context = llama.Context(model, settings, threads=1)
    first, second = (prompt(encoder, "Tell me all. " * 9 + question) for question in QUESTIONS[:2])
    same = common_prefix(first, second)

    def compute(sequence: int, tokens: list[int], start: int = 0) -> "np.ndarray[Any, Any]":
        for at in range(start, len(tokens), 20):
            chunk = range(at, min(at + 20, len(tokens)))
            context.decode([llama.Entry(tokens[i], i, sequence, i == chunk[-1]) for i in chunk])
        return logits(context, len(chunk) - 1)

    alone = compute(0, second)
    other = compute(1, first)
    context.forget(0)
    cache = PrefixCache(context, range(4, 20))
    cache.insert(1, first)
    cache.release(1)
    assert cache.share(2, second[:-1]) == same
    shared = compute(2, second, same)
    assert abs(shared - alone).max() < 3
    assert abs(shared - other).max() > 8
    context.close()
