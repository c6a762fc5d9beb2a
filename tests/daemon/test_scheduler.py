import itertools
from typing import Any
from unittest.mock import Mock

from vistrald.engine.deadline import Load, Rates
from vistrald.engine.prefix_cache import PrefixCache
from vistrald.engine.sampling import Sampling
from vistrald.engine.scheduler import Batch, Scheduler
from vistrald.engine.sequence import Sequence, Stream
from vistrald.engine.text import TextOutput
from vistrald.settings import EngineSection

numbers = itertools.count()

MIXED = 32  # prompt tokens in a batch in which others decode, at the rate below


def sequence(prompt: int, max_tokens: int = 10) -> Sequence:
    """A prompt of tokens that no other has."""
    sampler: Any = None
    return Sequence(
        tokens=list(itertools.islice(numbers, prompt)),
        sampling=Sampling(max_tokens=max_tokens),
        stream=Stream(),
        sampler=sampler,
        output=TextOutput([]),
        prompt_tokens=prompt,
    )


def scheduler(slots: int = 4, context: int = 1000, batch: int = 128) -> Scheduler:
    rates = Rates()
    rates.note(128, 0, 1.0)
    settings = EngineSection.model_construct(
        parallel_sequences=slots, queue_length=2, batch_tokens=batch
    )
    return Scheduler(settings, context, PrefixCache(Mock(), range(slots, 256)), rates)


def compute(work: Scheduler, batch: Batch) -> None:
    """What the engine does with a batch, with token 0 always sampled."""
    work.advance(batch)
    for seq, _, _ in batch.chunks:
        if not seq.pending:
            seq.append(0)


def counts(batch: Batch) -> list[int]:
    return [count for _, count, _ in batch.chunks]


def test_prefill_in_chunks_then_decode() -> None:
    work = scheduler()
    work.add(sequence(300))
    sizes = []
    for _ in range(5):
        batch = work.schedule()
        sizes.append((len(batch.entries), sum(entry.output for entry in batch.entries)))
        compute(work, batch)
    assert sizes == [(128, 0), (128, 0), (44, 1), (1, 1), (1, 1)]


def test_positions_go_on_from_what_is_computed() -> None:
    work = scheduler()
    work.add(sequence(130))
    compute(work, work.schedule())
    assert [entry.position for entry in work.schedule().entries] == [128, 129]


def test_a_long_prefill_does_not_hold_up_decoding() -> None:
    work = scheduler()
    first = sequence(10)
    work.add(first)
    compute(work, work.schedule())
    work.add(sequence(500))
    batch = work.schedule()
    assert batch.chunks[0][:2] == (first, 1)
    assert counts(batch) == [1, MIXED]


def test_prefill_is_shared_and_the_rest_of_a_share_passed_on() -> None:
    work = scheduler()
    for prompt in (400, 10, 400):
        work.add(sequence(prompt))
    assert counts(work.schedule()) == [10, 59, 59]


def test_admission_reserves_cells_for_the_answer_and_keeps_the_order() -> None:
    work = scheduler(context=200)
    first, large, small = sequence(50, 50), sequence(100, 50), sequence(10, 10)
    for seq in (first, large, small):
        work.add(seq)
    work.schedule()
    assert work.running == [first]
    work.remove(first)
    work.schedule()
    assert work.running == [large, small]


def test_load_counts_what_others_compute_beside_but_not_what_is_shared() -> None:
    work = scheduler()
    decoding, long, twin = sequence(10), sequence(300), sequence(100)
    work.add(decoding)
    compute(work, work.schedule())
    twin.tokens[:80] = long.tokens[:80]
    for seq in (long, twin):
        work.add(seq)
    work.admit()
    assert work.load(twin) == Load(1, 100, MIXED)  # of the 220 that are not shared
    assert work.load(long) == Load(1, 20, MIXED)


def test_full_counts_slots_and_queue() -> None:
    work = scheduler(slots=2)
    for _ in range(4):
        assert not work.full
        work.add(sequence(5))
    assert work.full


def test_what_nobody_waits_for_makes_way_and_comes_after_all_others() -> None:
    work = scheduler(slots=2)
    kept, first, second, third = sequence(300), sequence(10), sequence(20), sequence(30)
    kept.keep = True
    work.add(kept)
    compute(work, work.schedule())
    assert (work.yielding, kept.computed) == (True, 128)
    for person in (first, second, third):
        assert not work.full
        work.add(person)
    compute(work, work.schedule())
    assert work.running == [first, second]
    assert list(work.waiting) == [third, kept]
    assert (work.yielding, kept.slot, kept.computed) == (False, -1, 0)
    for person in (first, second, third):
        assert kept not in work.admit()
        work.remove(person)
    work.schedule()
    assert (work.running, kept.computed) == ([kept], 128)  # what it had computed was kept


def test_a_slot_is_used_again() -> None:
    work = scheduler(slots=1)
    first, second = sequence(5), sequence(5)
    work.add(first)
    work.add(second)
    work.schedule()
    work.remove(first)
    work.schedule()
    assert (second.slot, work.running) == (first.slot, [second])
