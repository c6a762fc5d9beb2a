"""One request: its tokens, sampling settings, output and times."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Literal

from vistrald.engine.deadline import full_sentences
from vistrald.engine.drafting import Lookup
from vistrald.engine.llama import Sampler
from vistrald.engine.sampling import Sampling
from vistrald.engine.text import TextOutput

FinishReason = Literal["stop", "length", "cancelled", "deadline_unreachable"]


# Of a stream, as long as nobody notices: whoever writes a piece out takes a core from those that
# compute. A large model's tokens take longer, and come one by one.
PIECE_SECONDS = 0.04


class StreamError(Exception):
    """What a stream ends with instead of a result."""


class EngineFailedError(StreamError):
    """The engine thread died while the request was in it; the process is about to exit."""


@dataclass(eq=False)
class DeadlineUnreachableError(StreamError):
    """Not one token of an answer can be generated in time."""

    prompt_tokens: int
    cached_tokens: int
    seconds: float | None  # that the others would take by themselves; None if no rate is known
    prefill_rate: float | None  # tokens a second
    deadline: float  # seconds

    @property
    def busy(self) -> bool:
        """Whether it was other requests that took the time: a retry may do."""
        return self.seconds is None or self.seconds <= self.deadline


@dataclass(frozen=True)
class Timings:
    """Durations in milliseconds, from submission on."""

    queue_ms: float  # until the first batch that held the sequence
    prompt_ms: float  # from there to the first generated token
    predicted_ms: float  # from the first to the last generated token
    ttft_ms: float  # from submission to the first generated token
    cache_n: int  # prompt tokens taken from the prefix cache
    disk_n: int  # of these, from its files
    prompt_n: int  # prompt tokens computed
    predicted_n: int
    draft_n: int  # tokens guessed
    draft_n_accepted: int  # of these, how many were generated

    @property
    def prompt_per_second(self) -> float:
        return self.prompt_n / self.prompt_ms * 1000 if self.prompt_ms else 0.0

    @property
    def prompt_per_token_ms(self) -> float:
        return self.prompt_ms / self.prompt_n if self.prompt_n else 0.0

    @property
    def predicted_per_token_ms(self) -> float:
        return 1000 / self.predicted_per_second if self.predicted_per_second else 0.0

    @property
    def predicted_per_second(self) -> float:
        """Rate of decode steps: the first token comes with prefill and is not counted."""
        steps = self.predicted_n - 1
        return steps / self.predicted_ms * 1000 if steps > 0 and self.predicted_ms else 0.0


@dataclass(frozen=True)
class Result:
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    timings: Timings
    ended_by: Literal["deadline"] | None = None
    # Length of the text up to its last full sentence, in characters, where the deadline ended it.
    complete_chars: int | None = None
    gaps: tuple[float, ...] = ()  # seconds between each two tokens


class Stream:
    """The caller's end of a request: iterate it for text, then read `result`."""

    def __init__(self, on_cancel: Callable[["Stream"], None] = lambda _: None) -> None:
        self._on_cancel = on_cancel
        self._events: SimpleQueue[str | Result | StreamError] = SimpleQueue()
        self.result: Result | None = None
        self.cancelled = False
        self.ended = False  # then there is a result, unless the engine failed

    def __iter__(self) -> Iterator[str]:
        """Text pieces as they are generated. Raises StreamError."""
        return self.poll(None)

    def poll(self, interval: float | None) -> Iterator[str]:
        """Like iteration, with "" whenever nothing came for `interval` seconds."""
        while not self.ended:
            try:
                event = self._events.get(timeout=interval)
            except Empty:
                yield ""
                continue
            if isinstance(event, str):
                yield event
                continue
            self.ended = True
            if isinstance(event, StreamError):
                raise event
            self.result = event

    def cancel(self) -> None:
        """Ends the request before its next token, with finish_reason "cancelled"."""
        self.cancelled = True
        self._on_cancel(self)

    def abandon(self) -> None:
        """Cancels and waits until the engine has let go; pieces that still come are dropped."""
        self.cancel()
        with contextlib.suppress(StreamError):
            for _ in self:
                pass

    def put(self, event: str | Result | StreamError) -> None:
        """For the engine: hands an event to whoever iterates."""
        self._events.put(event)


@dataclass(eq=False)
class Sequence:
    """A request inside the engine.

    `tokens` is the prompt and what was generated; the first `computed` of them are in the KV cache.
    More than one pending token is prefill, exactly one is decode: both are the same operation.
    """

    tokens: list[int]
    sampling: Sampling
    stream: Stream
    sampler: Sampler
    output: TextOutput
    prompt_tokens: int
    deadline_seconds: float | None = None  # from submission on
    keep: bool = False  # nobody waits: it yields to all others, and its prompt goes to disk
    allowed: int = field(init=False)  # tokens of answer; as many as asked for, or as fit in time
    text: str = ""
    flushed: int = 0  # characters of the text that the stream got
    flushed_at: float = 0.0
    computed: int = 0
    cached: int = 0  # of the computed ones, how many others had computed
    restored: int = 0  # of the cached ones, how many came from disk
    lookup: Lookup = field(default_factory=Lookup)
    drafted: int = 0
    accepted: int = 0  # of the drafted
    slot: int = -1
    submitted: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    gaps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.allowed = self.sampling.max_tokens

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def prefilling(self) -> bool:
        return self.computed < self.prompt_tokens

    @property
    def deadline(self) -> float:
        """On the monotonic clock."""
        return math.inf if self.deadline_seconds is None else self.submitted + self.deadline_seconds

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def left(self) -> int:
        """Tokens that may still be generated."""
        return self.allowed - self.generated

    @property
    def shortened(self) -> bool:
        """Fewer tokens than were asked for, because of the deadline."""
        return self.allowed < self.sampling.max_tokens

    @property
    def reserved(self) -> int:
        """KV cells it may come to need."""
        return self.prompt_tokens + self.allowed

    @property
    def remaining(self) -> int:
        """Of the reserved cells, those that nothing is in yet."""
        return self.reserved - self.computed

    def append(self, token: int) -> None:
        self.tokens.append(token)
        now = time.monotonic()
        if self.first_token:
            self.gaps.append(now - self.last_token)
        self.first_token = self.first_token or now
        self.last_token = now

    def say(self, text: str) -> None:
        """Adds to the text; the stream gets it with the next flush()."""
        self.text += text

    def flush(self, *, last: bool = False) -> None:
        """Passes on what was said, at most once in PIECE_SECONDS unless it is the last of it."""
        if len(self.text) > self.flushed and (
            last or self.last_token - self.flushed_at >= PIECE_SECONDS
        ):
            self.stream.put(self.text[self.flushed :])
            self.flushed, self.flushed_at = len(self.text), self.last_token

    def result(self, reason: FinishReason, *, by_deadline: bool = False) -> Result:
        now = time.monotonic()
        started = self.started or now
        first = self.first_token or now
        timings = Timings(
            queue_ms=(started - self.submitted) * 1000,
            prompt_ms=(first - started) * 1000,
            predicted_ms=((self.last_token or first) - first) * 1000,
            ttft_ms=(first - self.submitted) * 1000,
            cache_n=self.cached,
            disk_n=self.restored,
            prompt_n=min(self.computed, self.prompt_tokens) - self.cached,
            predicted_n=self.generated,
            draft_n=self.drafted,
            draft_n_accepted=self.accepted,
        )
        gaps = tuple(self.gaps)
        result = Result(reason, self.prompt_tokens, self.generated, timings, gaps=gaps)
        if not by_deadline:
            return result
        return replace(result, ended_by="deadline", complete_chars=full_sentences(self.text))
