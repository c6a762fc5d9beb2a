"""What goes into the next batch: each decoding sequence's token and guesses, chunks of prefill.

Who may run is decided by KV cells. They are in three kinds of hands: the prefix cache's, of which
those that a running sequence sees cannot be had; a running sequence's own; and those that a running
sequence may yet come to need. Their sum never exceeds the context, so that llama_decode always
finds a cell for a sequence that was admitted.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from vistrald.engine.deadline import Load, Rates, prefill_chunk
from vistrald.engine.drafting import Draft, Drafter
from vistrald.engine.llama import Entry
from vistrald.engine.prefix_cache import PrefixCache, common_prefix
from vistrald.engine.sequence import Sequence
from vistrald.settings import EngineSection

# Tokens for which it pays to wait until another sequence has computed them. A batch of fewer takes
# as long as of these: the weights have to be read for it.
WORTH_WAITING_TOKENS = 8


NO_DRAFT = Draft([], 0)


class Chunk(NamedTuple):
    """A sequence's part of a batch: so many of its own tokens, then guessed ones."""

    sequence: Sequence
    own: int
    draft: Draft = NO_DRAFT


@dataclass
class Batch:
    entries: list[Entry] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def add(self, sequence: Sequence, count: int, draft: Draft = NO_DRAFT) -> None:
        """Appends the sequence's next `count` pending tokens and the draft.

        The last of all pending tokens asks for logits, and so does each guess.
        """
        slot, last = sequence.slot, len(sequence.tokens) - 1
        self.entries += [
            Entry(sequence.tokens[at], at, slot, at == last)
            for at in range(sequence.computed, sequence.computed + count)
        ]
        self.entries += [
            Entry(token, at, slot, True) for at, token in enumerate(draft.tokens, start=last + 1)
        ]
        self.chunks.append(Chunk(sequence, count, draft))


class Scheduler:
    """Waiting and running sequences. First come, first admitted; prefill is shared fairly.

    Sequence ids below `parallel_sequences` belong to running sequences; the cache has others.
    """

    def __init__(
        self,
        settings: EngineSection,
        context_tokens: int,
        cache: PrefixCache,
        rates: Rates,
        drafter: Drafter | None = None,
    ) -> None:
        """The engine keeps `rates` and `drafter` up to date; with no drafter there are no guesses.

        `context_tokens` is what libllama made of the configured number.
        """
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.capacity = settings.parallel_sequences + settings.queue_length
        self.cache = cache
        self._free_slots = list(range(settings.parallel_sequences))
        self._context_tokens = context_tokens
        self._batch_tokens = settings.batch_tokens
        self._rates = rates
        self._drafter = drafter

    @property
    def full(self) -> bool:
        return sum(not each.keep for each in [*self.waiting, *self.running]) >= self.capacity

    @property
    def used_cells(self) -> int:
        """KV cells with content, each counted once."""
        return self.cache.cells + sum(map(self._own_cells, self.running))

    @property
    def spare(self) -> int:
        """KV cells that no sequence needs or may come to need."""
        needed = sum(self._own_cells(other) + other.remaining for other in self.running)
        return self._context_tokens - self.cache.held_cells - needed

    @property
    def yielding(self) -> bool:
        """Whether what runs would make way for a request that somebody waits for."""
        return any(each.keep for each in self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues it; what nobody waits for comes after all others."""
        at = len(self.waiting)
        while not sequence.keep and at and self.waiting[at - 1].keep:
            at -= 1
        self.waiting.insert(at, sequence)

    def remove(self, sequence: Sequence) -> None:
        """Lets go of a sequence; what a running one computed stays resident as cache."""
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return
        self.cache.insert(sequence.slot, sequence.tokens[: sequence.computed])
        self.running.remove(sequence)
        self._vacate(sequence.slot)

    def schedule(self) -> Batch:
        """Admits what fits, then fills one batch and sees to it that it finds cells."""
        self.admit()
        batch = Batch()
        decoding = [sequence for sequence in self.running if not sequence.prefilling]
        wanted = self._prefill_wanted()
        # No guesses beside prefill: such a batch's time says nothing of what they cost.
        drafts = [NO_DRAFT] * len(decoding) if wanted else self._drafts(decoding)
        for sequence, draft in zip(decoding, drafts, strict=True):
            batch.add(sequence, 1, draft)
        budget = self._prefill_chunk(len(decoding))
        # Equal shares, the shortest first: what it does not need of its share goes to the others.
        prefilling = sorted(wanted.items(), key=lambda item: item[1])
        for others, (sequence, tokens) in zip(
            range(len(prefilling), 0, -1), prefilling, strict=True
        ):
            count = min(tokens, budget // others)
            budget -= count
            if count:
                batch.add(sequence, count)
        self.cache.evict(self.used_cells + len(batch.entries) - self._context_tokens)
        return batch

    def advance(self, batch: Batch) -> None:
        """Notes that the batch was computed; prompts become resident as far as they are."""
        for sequence, own, _ in batch.chunks:
            sequence.computed += own
            if sequence.computed <= sequence.prompt_tokens:
                self.cache.insert(sequence.slot, sequence.tokens[: sequence.computed])

    def load(self, sequence: Sequence) -> Load:
        """What a running or waiting sequence shares the machine with."""
        others = [other for other in self.running if other is not sequence]
        prefilling = [other for other in others if other.prefilling]
        prefill_tokens = 0
        for other in prefilling:
            shared = common_prefix(other.tokens, sequence.tokens)
            beyond = len(other.tokens) - max(shared, other.computed)
            # Equal shares: of a longer prompt, as much is computed meanwhile as of the own one.
            prefill_tokens += min(beyond, sequence.pending)
        decoding = len(others) - len(prefilling)
        return Load(decoding, prefill_tokens, self._prefill_chunk(decoding))

    def admit(self) -> list[Sequence]:
        """In order of arrival, so that a long prompt is not overtaken for ever by short ones.

        Cells for prompt and answer are reserved: a sequence once admitted never runs out of cache.
        What nobody waits for runs alone, and goes back to the queue when somebody comes.
        """
        admitted: list[Sequence] = []
        if self.waiting and not self.waiting[0].keep:
            self._send_back()
        while self.waiting and self._free_slots:
            sequence = self.waiting[0]
            if sequence.keep and self.running:
                break
            # Sharing comes first: cells that others hold already are not reserved a second time.
            slot = self._free_slots.pop()
            shared = self._share(sequence, slot)
            if sequence.reserved - shared > self.spare:
                self._vacate(slot)
                break
            sequence.slot = slot
            self._take_over(sequence, shared)
            self.running.append(self.waiting.popleft())
            admitted.append(sequence)
        return admitted

    def make_room(self, sequence: Sequence, length: int) -> bool:
        """Lets an admitted sequence's cells go if there is room for `length` others, to be loaded.

        False, and nothing has happened, if there is none beside what is resident.
        """
        self.cache.evict(self.used_cells + length - self._context_tokens)
        if self.used_cells + length > self._context_tokens:
            return False
        self.cache.release(sequence.slot)
        sequence.cached -= sequence.computed
        sequence.computed = 0
        return True

    def restored(self, sequence: Sequence, length: int) -> None:
        """Notes that the sequence's first `length` cells were loaded, 0: none."""
        if not length:
            self.take_resident(sequence)
            return
        sequence.restored = length - self.cache.resident(sequence.tokens[:length])
        sequence.computed = length
        sequence.cached += length
        self.cache.insert(sequence.slot, sequence.tokens[:length])

    def take_resident(self, sequence: Sequence) -> None:
        """Lets a running sequence see what has become resident of its prompt."""
        self._take_over(sequence, self._share(sequence, sequence.slot))

    def _prefill_chunk(self, decoding: int) -> int:
        return prefill_chunk(self._rates, decoding, self._batch_tokens - decoding)

    def _drafts(self, decoding: list[Sequence]) -> list[Draft]:
        if not self._drafter:
            return [NO_DRAFT] * len(decoding)
        return self._drafter.choose([self._drafter.find(sequence) for sequence in decoding])

    def _prefill_wanted(self) -> dict[Sequence, int]:
        """How many tokens to compute next of each prompt, batch size aside.

        A prompt that begins like an earlier one waits until that has computed what they share; the
        earlier one then stops there for a moment, so that the wait is no longer than it must be.
        """
        wanted: dict[Sequence, int] = {}
        for sequence in self.running:
            if not sequence.prefilling:
                continue
            self.take_resident(sequence)
            for leader, until in wanted.items():
                shared = min(
                    common_prefix(leader.tokens, sequence.tokens), sequence.prompt_tokens - 1
                )
                if shared - max(leader.computed, sequence.computed) >= WORTH_WAITING_TOKENS:
                    wanted[leader] = min(until, shared - leader.computed)
                    break
            else:
                wanted[sequence] = sequence.pending
        return wanted

    def _send_back(self) -> None:
        """To the queue's end; what was computed stays resident as long as nobody needs cells."""
        for sequence in [each for each in self.running if each.keep]:
            self.cache.insert(sequence.slot, sequence.tokens[: sequence.computed])
            self.running.remove(sequence)
            self._vacate(sequence.slot)
            sequence.slot, sequence.computed, sequence.cached = -1, 0, 0
            self.waiting.append(sequence)

    def _share(self, sequence: Sequence, slot: int) -> int:
        """Tokens of the prompt that the slot now sees; the last is left: its logits are needed."""
        return self.cache.share(slot, sequence.tokens[: sequence.prompt_tokens - 1])

    def _take_over(self, sequence: Sequence, shared: int) -> None:
        if shared > sequence.computed:
            sequence.cached += shared - sequence.computed
            sequence.computed = shared

    def _own_cells(self, sequence: Sequence) -> int:
        return sequence.computed - self.cache.length(sequence.slot)

    def _vacate(self, slot: int) -> None:
        self.cache.release(slot)
        self._free_slots.append(slot)
