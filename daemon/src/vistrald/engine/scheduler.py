"""What goes into the next batch: one token of each decoding sequence, then chunks of prefill."""

from collections import deque
from dataclasses import dataclass, field

from vistrald.engine.llama import Entry
from vistrald.engine.sequence import Sequence

# Prefill tokens in a batch that others decode in. Eight cores prefill about 20 tokens/s of a 24B
# model: this many hold running streams up for 1.6 s, where a whole batch of 512 would for 25 s.
MIXED_PREFILL_TOKENS = 32


@dataclass
class Batch:
    entries: list[Entry] = field(default_factory=list)
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)

    def add(self, sequence: Sequence, count: int) -> None:
        """Appends the sequence's next `count` pending tokens; the last of all asks for logits."""
        start, end = sequence.computed, sequence.computed + count
        self.entries += [
            Entry(sequence.tokens[at], at, sequence.slot, at == len(sequence.tokens) - 1)
            for at in range(start, end)
        ]
        self.chunks.append((sequence, count))


class Scheduler:
    """Waiting and running sequences. First come, first admitted; prefill is shared fairly."""

    def __init__(
        self, *, slots: int, queue_length: int, context_tokens: int, batch_tokens: int
    ) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.capacity = slots + queue_length
        self._free_slots = list(range(slots))
        self._context_tokens = context_tokens
        self._batch_tokens = batch_tokens

    @property
    def full(self) -> bool:
        return len(self.waiting) + len(self.running) >= self.capacity

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
            self._free_slots.append(sequence.slot)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> Batch:
        """Admits what fits, then fills one batch."""
        self._admit()
        batch = Batch()
        decoding = [sequence for sequence in self.running if not sequence.prefilling]
        prefilling = [sequence for sequence in self.running if sequence.prefilling]
        for sequence in decoding:
            batch.add(sequence, 1)
        budget = self._batch_tokens - len(decoding)
        if decoding:
            budget = min(budget, MIXED_PREFILL_TOKENS)
        # Equal shares, the shortest first: what it does not need of its share goes to the others.
        prefilling.sort(key=lambda sequence: sequence.pending)
        for others, sequence in zip(range(len(prefilling), 0, -1), prefilling, strict=True):
            count = min(sequence.pending, budget // others)
            budget -= count
            if count:
                batch.add(sequence, count)
        return batch

    def _admit(self) -> None:
        """In order of arrival, so that a long prompt is not overtaken for ever by short ones.

        Cells for prompt and answer are reserved: a sequence once admitted never runs out of cache.
        """
        while self.waiting and self._free_slots:
            reserved = sum(sequence.reserved for sequence in self.running)
            if reserved + self.waiting[0].reserved > self._context_tokens:
                return
            sequence = self.waiting.popleft()
            sequence.slot = self._free_slots.pop()
            self.running.append(sequence)
