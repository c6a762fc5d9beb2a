"""The one thread that owns the context; submit, stream, cancel."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from vistrald.engine.llama import (
    PENALTY_WINDOW,
    SEQUENCE_IDS,
    Context,
    Decoded,
    LlamaError,
    Model,
    Sampler,
)
from vistrald.engine.prefix_cache import PrefixCache
from vistrald.engine.sampling import Sampling
from vistrald.engine.scheduler import Batch, Scheduler
from vistrald.engine.sequence import (
    EngineFailedError,
    FinishReason,
    Result,
    Sequence,
    Stream,
)
from vistrald.engine.text import TextOutput
from vistrald.settings import EngineSection


class QueueFullError(Exception):
    """As many requests wait as may."""


class ContextOverflowError(Exception):
    """The prompt leaves no room for an answer in the context."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens, the limit is {limit}")
        self.tokens = tokens
        self.limit = limit


class StoppedError(Exception):
    """The engine takes no more requests."""


class Engine:
    def __init__(
        self,
        model: Model,
        context: Context,
        settings: EngineSection,
        on_finish: Callable[[Result], None] = lambda _: None,
    ) -> None:
        """`on_finish` is called in the engine thread with each request's result."""
        self._vocabulary = model.vocabulary
        self._context = context
        self._on_finish = on_finish
        self._scheduler = Scheduler(
            slots=settings.parallel_sequences,
            queue_length=settings.queue_length,
            context_tokens=context.context_tokens,
            batch_tokens=context.batch_tokens,
            cache=PrefixCache(context, self._cached_ids(model, settings)),
        )
        self._changed = threading.Condition()  # guards the scheduler and `_accepting`
        self._accepting = True
        self._stopping = False

    @staticmethod
    def _cached_ids(model: Model, settings: EngineSection) -> range:
        if not settings.prefix_cache or not model.shares_prefixes:
            return range(0)
        return range(settings.parallel_sequences, SEQUENCE_IDS)

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def used_cells(self) -> int:
        """KV cells with content; for gauges: another thread may be changing it."""
        return self._scheduler.used_cells

    def submit(self, prompt: list[int], sampling: Sampling) -> Stream:
        """Queues a request; any thread may call it.

        max_tokens is lowered to what the context holds after the prompt. Raises
        ContextOverflowError, QueueFullError, StoppedError.
        """
        if not prompt:
            raise ValueError("a prompt has at least one token")
        limit = self._context.context_tokens - 1
        if len(prompt) > limit:
            raise ContextOverflowError(len(prompt), limit)
        room = self._context.context_tokens - len(prompt)
        sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        with self._changed:
            if not self._accepting:
                raise StoppedError
            if self._scheduler.full:
                raise QueueFullError
            sequence = self._sequence(prompt, sampling)
            self._scheduler.add(sequence)
            self._changed.notify()
        return sequence.stream

    def _sequence(self, prompt: list[int], sampling: Sampling) -> Sequence:
        sampler = Sampler(self._vocabulary, sampling, history=prompt[-PENALTY_WINDOW:])
        return Sequence(
            tokens=list(prompt),
            sampling=sampling,
            stream=Stream(self._on_cancel),
            sampler=sampler,
            output=TextOutput(sampling.stop),
            prompt_tokens=len(prompt),
        )

    def _on_cancel(self, stream: Stream) -> None:
        """A waiting request ends at once; a prefill batch, half a minute long, is aborted.

        A decode step is short and shared with others: it is let finish.
        """
        with self._changed:
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                if sequence.stream is not stream:
                    continue
                if sequence.slot < 0:
                    self._finish(sequence, "cancelled")
                elif sequence.prefilling:
                    self._context.abort()

    def run(self) -> None:
        """Works until stop(); an exception here means the engine is dead."""
        try:
            while not self._stopping:
                if not self.step():
                    with self._changed:
                        self._changed.wait_for(self._has_work)
        finally:
            self._fail_all()

    def _has_work(self) -> bool:
        return bool(self._stopping or self._scheduler.waiting or self._scheduler.running)

    def step(self) -> bool:
        """Computes one batch; False if there was nothing to do."""
        # Before the cancelled are looked for: an abort from here on is for this batch.
        self._context.allow()
        with self._changed:
            self._drop_cancelled()
            batch = self._scheduler.schedule()
        if not batch.entries:
            return False
        now = time.monotonic()
        for sequence, _ in batch.chunks:
            sequence.started = sequence.started or now
        match self._context.decode(batch.entries):
            case Decoded.DONE:
                self._scheduler.advance(batch)
                self._sample(batch)
            case Decoded.NO_SLOT:
                raise LlamaError("the KV cache is full although cells were reserved")
            case Decoded.ABORTED:
                pass  # nothing of the batch remains; the next step is without the cancelled
        return True

    def _sample(self, batch: Batch) -> None:
        """Samples where logits were asked for and passes text on."""
        index = -1
        for sequence, count in batch.chunks:
            index += count  # of the chunk's last entry
            if sequence.pending:
                continue
            token = sequence.sampler.sample(self._context, index)
            self._accept(sequence, token)

    def _accept(self, sequence: Sequence, token: int) -> None:
        sequence.append(token)
        if token in self._vocabulary.end_of_generation:
            self._finish(sequence, "stop")
            return
        text = sequence.output.push(self._vocabulary.piece(token))
        if text:
            sequence.stream.put(text)
        if sequence.output.stopped:
            self._finish(sequence, "stop")
        elif sequence.generated >= sequence.sampling.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        with self._changed:
            self._scheduler.remove(sequence)
        sequence.sampler.close()
        if rest := sequence.output.finish():
            sequence.stream.put(rest)
        result = sequence.result(reason)
        self._on_finish(result)
        sequence.stream.put(result)

    def _drop_cancelled(self) -> None:
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.stream.cancelled:
                self._finish(sequence, "cancelled")

    def _fail_all(self) -> None:
        with self._changed:
            self._accepting = False
            sequences = [*self._scheduler.running, *self._scheduler.waiting]
        for sequence in sequences:
            sequence.stream.put(EngineFailedError("the engine thread died"))

    def warm_up(self) -> None:
        """Generates one token, so that the first request finds everything allocated."""
        token = self._vocabulary.bos if self._vocabulary.bos >= 0 else self._vocabulary.eos
        self.submit([token], Sampling(max_tokens=1))
        while self.step():
            pass
        self._scheduler.cache.clear()

    def refuse(self) -> None:
        """Takes no more requests; those it has go on."""
        with self._changed:
            self._accepting = False

    def cancel_all(self) -> None:
        with self._changed:
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                sequence.stream.cancelled = True
            self._changed.notify()
        self._context.abort()

    def stop(self) -> None:
        """Ends run() after the current step."""
        with self._changed:
            self._accepting = False
            self._stopping = True
            self._changed.notify()
        self._context.abort()
