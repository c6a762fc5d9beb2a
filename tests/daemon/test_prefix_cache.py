"""The tree of resident prefixes and its scheduler on a memory that behaves as llama.cpp's does.

The simulated memory checks what no output could show: which cells a sequence sees, with the
positions and tokens that are in them.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistrald.engine.deadline import Rates
from vistrald.engine.drafting import Drafter
from vistrald.engine.prefix_cache import PrefixCache, common_prefix
from vistrald.engine.sampling import Sampling
from vistrald.engine.scheduler import Scheduler
from vistrald.engine.sequence import Sequence, Stream
from vistrald.engine.text import TextOutput
from vistrald.settings import EngineSection

DRAFT_TOKENS = 4


@dataclass
class Cell:
    position: int
    token: int
    sequences: set[int]


@dataclass
class FakeMemory:
    """A unified KV cache: cells with a position, free when no sequence sees them."""

    size: int
    cells: list[Cell] = field(default_factory=list)

    def compute(self, sequence: int, position: int, token: int) -> None:
        assert len(self.cells) < self.size, "NO_SLOT for an admitted sequence"
        self.cells.append(Cell(position, token, {sequence}))

    def share(self, source: int, target: int, start: int, end: int) -> None:
        for cell in self.cells:
            if source in cell.sequences and start <= cell.position < end:
                cell.sequences.add(target)

    def remove(self, sequence: int, start: int, end: int) -> None:
        for cell in self.cells:
            if start <= cell.position < end:
                cell.sequences.discard(sequence)
        self.cells = [cell for cell in self.cells if cell.sequences]

    def forget(self, sequence: int) -> None:
        self.remove(sequence, 0, 2**31)

    def seen(self, sequence: int) -> list[tuple[int, int]]:
        return sorted((c.position, c.token) for c in self.cells if sequence in c.sequences)


def check(cache: PrefixCache, memory: FakeMemory) -> None:
    """Each node owns the cells of its run, once, with its tokens; the sums are right."""
    assert cache.cells == sum(len(node.tokens) for node in cache._nodes)
    ids = [node.sequence for node in cache._nodes] + cache._free_ids
    assert len(set(ids)) == len(ids)
    for node in cache._nodes:
        assert node.tokens
        assert node.parent is not None
        assert node.parent.end == node.start
        assert node.parent.children[node.tokens[0]] is node
        assert memory.seen(node.sequence) == list(enumerate(node.tokens, node.start))
    owned = {node.sequence for node in cache._nodes}
    for cell in memory.cells:
        assert len(cell.sequences & owned) <= 1


class Tree:
    """A cache, its memory, and sequences that compute whatever is not shared."""

    def __init__(self, ids: int = 20, size: int = 1000) -> None:
        self.memory = FakeMemory(size)
        self.cache = PrefixCache(self.memory, range(100, 100 + ids))

    def run(self, tokens: list[int], sequence: int = 0) -> int:
        """Shares, computes and inserts; returns how many tokens were shared."""
        shared = self.cache.share(sequence, tokens)
        assert self.memory.seen(sequence) == list(enumerate(tokens[:shared]))
        for position in range(shared, len(tokens)):
            self.memory.compute(sequence, position, tokens[position])
        self.cache.insert(sequence, tokens)
        assert self.memory.seen(sequence) == list(enumerate(tokens))
        check(self.cache, self.memory)
        return shared

    def finish(self, sequence: int = 0) -> None:
        self.cache.release(sequence)
        check(self.cache, self.memory)

    def once(self, text: str) -> int:
        shared = self.run([ord(letter) for letter in text])
        self.finish()
        return shared

    def resident(self, text: str) -> int:
        """How much of the text is resident, without a trace of having asked."""
        tokens, node, length = [ord(letter) for letter in text], self.cache._root, 0
        while child := node.children.get(tokens[length]) if length < len(tokens) else None:
            length += common_prefix(child.tokens, tokens[length:])
            if length < child.end:
                break
            node = child
        return length


def test_the_longest_common_prefix_is_shared() -> None:
    tree = Tree()
    assert tree.once("system law-1 question") == 0
    assert tree.once("system law-1 another") == len("system law-1 ")
    assert tree.once("system law-2 question") == len("system law-")
    assert tree.once("system law-1 question") == len("system law-1 question")
    assert tree.once("other") == 0


def test_shared_cells_are_counted_once() -> None:
    tree = Tree()
    tree.run(list(b"prefix one"), sequence=0)
    tree.run(list(b"prefix two"), sequence=1)
    assert tree.cache.cells == len(tree.memory.cells) == len("prefix ") + 2 * len("one")
    assert tree.cache.held_cells == tree.cache.cells
    tree.finish(0)
    assert tree.cache.held_cells == len("prefix two")


def test_what_two_computed_at_once_is_kept_once() -> None:
    """Both computed the same tokens, since neither was resident when the other began."""
    tree = Tree()
    for sequence in (0, 1):
        for position, token in enumerate(b"same"):
            tree.memory.compute(sequence, position, token)
    assert len(tree.memory.cells) == 8
    for sequence in (0, 1):
        tree.cache.insert(sequence, list(b"same"))
        check(tree.cache, tree.memory)
    assert len(tree.memory.cells) == tree.cache.cells == 4
    assert tree.memory.seen(1) == list(enumerate(b"same"))


def test_the_least_recently_used_goes_first_and_from_its_end() -> None:
    tree = Tree()
    for text in ("aaaa", "bbbb", "cccc"):
        tree.once(text)
    tree.once("aaaa")
    assert tree.cache.evict(2) == 2
    assert [tree.resident(text) for text in ("aaaa", "bbbb", "cccc")] == [4, 2, 4]
    assert tree.cache.evict(3) == 3
    assert [tree.resident(text) for text in ("aaaa", "bbbb", "cccc")] == [4, 0, 3]
    check(tree.cache, tree.memory)


def test_a_common_beginning_outlives_its_ends() -> None:
    tree = Tree()
    tree.once("system one")
    tree.once("system two")
    tree.cache.evict(6)
    assert tree.cache.cells == tree.resident("system ") == 7


def test_what_is_held_is_not_evicted() -> None:
    tree = Tree()
    tree.once("prefix and an end")
    tree.run(list(b"prefix"))
    assert tree.cache.evict(100) == len(" and an end")
    assert tree.memory.seen(0) == list(enumerate(b"prefix"))
    check(tree.cache, tree.memory)
    tree.finish()
    tree.cache.clear()
    assert not tree.memory.cells
    assert tree.cache.nodes == 0


def test_with_no_ids_nothing_is_resident() -> None:
    tree = Tree(ids=0)
    assert tree.once("text") == 0
    assert tree.once("text") == 0
    assert not tree.memory.cells


def test_ids_are_taken_from_the_oldest_leaf_but_never_from_the_one_that_is_split() -> None:
    tree = Tree(ids=2)
    tree.once("aaaa")
    tree.once("bbbb")
    tree.once("cccc")
    assert [tree.resident(text) for text in ("aaaa", "bbbb", "cccc")] == [0, 4, 4]
    assert tree.once("bbxx") == 2
    assert tree.resident("bb") == 2
    one = Tree(ids=1)
    one.once("aaaa")
    assert one.once("aaxx") == 0  # no id for the split: computed anew rather than wrong
    one.run(list(b"aaaa"), sequence=0)
    one.run(list(b"aaxx"), sequence=1)
    assert one.memory.seen(1) == list(enumerate(b"aaxx"))


def sequence(tokens: list[int], max_tokens: int) -> Sequence:
    sampler: Any = None
    return Sequence(
        tokens=list(tokens),
        sampling=Sampling(max_tokens=max_tokens),
        stream=Stream(),
        sampler=sampler,
        output=TextOutput([]),
        prompt_tokens=len(tokens),
    )


class Simulation:
    """Requests through the real scheduler; what the engine does, without a model."""

    def __init__(self, *, ids: int, context: int = 96, slots: int = 3, batch: int = 16) -> None:
        self.memory = FakeMemory(context)
        self.slots = slots
        settings = EngineSection.model_construct(
            parallel_sequences=slots, queue_length=100, batch_tokens=batch
        )
        cache = PrefixCache(self.memory, range(slots, slots + ids))
        # All guesses are taken, as if they cost nothing; over three tokens there are many.
        drafter = Drafter(DRAFT_TOKENS, lambda _: 1.0)
        self.scheduler = Scheduler(settings, context, cache, Rates(), drafter)

    def restore(self, chance: random.Random) -> None:
        """Some of those admitted get the beginning of their prompt from a file, or fail to."""
        for seq in self.scheduler.admit():
            length = chance.randint(0, seq.prompt_tokens - 1)
            if length <= seq.computed or chance.random() < 0.5:
                continue
            if not self.scheduler.make_room(seq, length):
                continue
            assert not self.memory.seen(seq.slot)
            loaded = chance.random() < 0.7
            for position in range(length if loaded else 0):
                self.memory.compute(seq.slot, position, seq.tokens[position])
            self.scheduler.restored(seq, length if loaded else 0)
            self.check()
            assert 0 <= seq.restored <= seq.cached <= seq.computed < seq.prompt_tokens

    def step(self, next_token: random.Random, *, aborted: bool = False) -> None:
        batch = self.scheduler.schedule()
        kept = [each for each in self.scheduler.running if each.keep]
        assert not kept or self.scheduler.running == kept
        assert not kept or all(each.keep for each in self.scheduler.waiting)
        assert len(kept) <= 1
        assert self.scheduler.used_cells == len(self.memory.cells)
        assert len(self.memory.cells) + len(batch.entries) <= self.memory.size
        assert sum(entry.output for entry in batch.entries) <= self.slots + DRAFT_TOKENS
        if aborted:
            return
        texts = {seq.slot: [*seq.tokens, *draft.tokens] for seq, _, draft in batch.chunks}
        for entry in batch.entries:
            tokens = texts[entry.sequence]
            # All that this token attends to: its own prefix, whole and nothing else.
            assert self.memory.seen(entry.sequence) == list(enumerate(tokens[: entry.position]))
            self.memory.compute(entry.sequence, entry.position, entry.token)
        self.scheduler.advance(batch)
        for seq, _, draft in batch.chunks:
            if not seq.pending:
                self.sample(seq, draft.tokens, next_token)
        self.check()

    def sample(self, seq: Sequence, draft: list[int], next_token: random.Random) -> None:
        for guess in [*draft, None]:
            token = next_token.randrange(3)
            seq.append(token)
            if seq.generated >= seq.sampling.max_tokens:
                self.scheduler.remove(seq)
                return
            if token != guess:
                break
            seq.computed += 1
        self.memory.remove(seq.slot, seq.computed, 2**31)

    def check(self) -> None:
        check(self.scheduler.cache, self.memory)
        for seq in self.scheduler.running:
            assert self.memory.seen(seq.slot) == list(enumerate(seq.tokens[: seq.computed]))
        running = {seq.slot for seq in self.scheduler.running}
        for slot in set(range(self.slots)) - running:
            assert not self.memory.seen(slot)


# Prompts over three tokens with a few common beginnings: most requests meet others' prefixes.
BEGINNINGS = ([], [0] * 20, [0] * 20 + [1] * 30, [1] * 40, [2, 0] * 17)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 1, 2, 5, 60]))
def test_every_token_sees_its_own_prefix_and_nothing_else(seed: int, ids: int) -> None:
    """Requests come, go and are cancelled in any order, aborts included; cells never run out."""
    chance = random.Random(seed)
    work = Simulation(ids=ids)
    for _ in range(60):
        if chance.random() < 0.4:
            tail = [chance.randrange(3) for _ in range(chance.randint(1, 25))]
            prompt = chance.choice(BEGINNINGS) + tail
            most = work.memory.size - len(prompt)
            keep = chance.random() < 0.2  # then no answer is wanted, as with Engine.keep()
            new = sequence(prompt, 1 if keep else chance.randint(1, min(most, 20)))
            new.keep = keep
            work.scheduler.add(new)
        known = [*work.scheduler.running, *work.scheduler.waiting]
        if known and chance.random() < 0.1:
            work.scheduler.remove(chance.choice(known))
            work.check()
        work.restore(chance)
        work.step(chance, aborted=chance.random() < 0.1)
    for _ in range(3000):
        if not work.scheduler.running and not work.scheduler.waiting:
            break
        work.step(chance)
    assert not work.scheduler.running
    assert not work.scheduler.waiting
    assert work.scheduler.cache.held_cells == 0
    work.scheduler.cache.clear()
    assert not work.memory.cells


def counted(work: Simulation, *requests: Sequence) -> None:
    for request in requests:
        work.scheduler.add(request)
    while work.scheduler.running or work.scheduler.waiting:
        work.step(random.Random(0))


def test_a_repeated_prompt_computes_its_last_token_only() -> None:
    work = Simulation(ids=20)
    prompt = list(range(40))
    counted(work, sequence(prompt, 2))
    again = sequence(prompt, 2)
    counted(work, again)
    assert (again.cached, again.computed - again.cached) == (39, 2)


def test_prompts_that_arrive_together_compute_what_they_share_once() -> None:
    work = Simulation(ids=20, context=200)
    requests = [sequence([7] * 60 + [tail], 2) for tail in range(3)]
    counted(work, *requests)
    assert sorted(request.cached for request in requests) == [0, 60, 60]


def test_a_short_common_beginning_is_not_waited_for() -> None:
    work = Simulation(ids=20, context=200)
    requests = [sequence([7] * 5 + [tail] * 30, 2) for tail in range(3)]
    for request in requests:
        work.scheduler.add(request)
    work.step(random.Random(0))
    assert all(request.computed for request in requests)


def test_a_cancelled_prefill_stays_and_a_retry_goes_on_from_it() -> None:
    work = Simulation(ids=20)
    first = sequence(list(range(60)), 2)
    work.scheduler.add(first)
    work.step(random.Random(0))
    work.step(random.Random(0))
    work.scheduler.remove(first)
    retry = sequence(list(range(60)), 2)
    counted(work, retry)
    assert retry.cached == 32


def test_shared_cells_are_not_reserved_twice() -> None:
    """Three of 60 + 10 cells do not fit into 96 by themselves; with 50 shared they do."""
    work = Simulation(ids=20)
    counted(work, sequence([5] * 50 + [0], 1))
    for tail in range(3):
        work.scheduler.add(sequence([5] * 50 + [tail], 5))
    work.step(random.Random(0))
    assert len(work.scheduler.running) == 3


@pytest.mark.parametrize(("a", "b", "n"), [("", "x", 0), ("ab", "abc", 2), ("ab", "ax", 1)])
def test_common_prefix(a: str, b: str, n: int) -> None:
    assert common_prefix(list(map(ord, a)), list(map(ord, b))) == n
