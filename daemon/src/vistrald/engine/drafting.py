"""Prompt-lookup speculation: guesses taken from what the request itself contains.

An answer of this kind quotes: the articles it was given, the question, itself. Where the last few
tokens stood before, the tokens that followed them there are guessed to follow again, and one batch
verifies several guesses (Saxena, "Prompt Lookup Decoding", 2023). A guess is kept only where the
sampler draws the same token from the model's own logits: the answers are those of plain decode.

What a guess costs is the machine's, measured; what it is worth is the text's, measured too.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

NGRAM = 3  # tokens that must agree: some one and a half Russian words
LONGEST_MATCH = 32  # tokens; beyond it a match says no more
CANDIDATES = 16  # earlier places that are compared, the latest first
DECAY = 0.98  # weight of earlier verdicts when a new one comes: about fifty count
PRIOR_TRIES = 4.0  # that many verdicts weigh as much as what is thought beforehand
WORTH = 1.05  # tokens a second that guesses must promise, relative to none: less is noise
PROBE_STEPS = 128  # steps without a guess after which one is verified all the same


class Draft(NamedTuple):
    """Guessed tokens, and how many tokens before them agree with the earlier place."""

    tokens: list[int]
    match: int


class Lookup:
    """Where each n-gram of one request's tokens stood before."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], list[int]] = {}  # n-gram -> positions after it
        self._indexed = NGRAM - 1

    def draft(self, tokens: Sequence[int], limit: int) -> Draft:
        """Up to `limit` tokens that may follow `tokens`, which only ever grow between calls."""
        size = len(tokens)
        for end in range(self._indexed + 1, size):
            self._ends.setdefault(tuple(tokens[end - NGRAM : end]), []).append(end)
        self._indexed = max(self._indexed, size - 1)
        found = self._ends.get(tuple(tokens[-NGRAM:]), ())
        best, longest = 0, 0
        for end in found[: -CANDIDATES - 1 : -1]:
            match = common_suffix(tokens, end)
            if match > longest:
                best, longest = end, match
        return Draft(list(tokens[best : best + limit]) if longest else [], longest)


def common_suffix(tokens: Sequence[int], end: int) -> int:
    """How many tokens before `end` are the last ones too, LONGEST_MATCH at most."""
    size = len(tokens)
    longest = min(end, LONGEST_MATCH)
    return next((n for n in range(longest) if tokens[end - 1 - n] != tokens[size - 1 - n]), longest)


class Odds:
    """How often guesses came true, by the length of the match that led to them."""

    def __init__(self) -> None:
        buckets = LONGEST_MATCH.bit_length() + 1
        # Before anything is known, Laplace's rule of succession: what came true n times in a row
        # does so again with (n + 1) / (n + 2). Otherwise nothing would ever be tried where a guess
        # costs nearly a step of its own.
        agreed = [2 ** (bucket - 1) if bucket else 0 for bucket in range(buckets)]
        self._tries = [PRIOR_TRIES] * buckets
        self._hits = [PRIOR_TRIES * (n + 1) / (n + 2) for n in agreed]

    def survival(self, draft: Draft) -> list[float]:
        """For each guess, the probability that it and all before it come true.

        A guess that came true makes the match longer by one.
        """
        odds, survival = 1.0, []
        for at in range(len(draft.tokens)):
            bucket = self._bucket(draft.match + at)
            odds *= self._hits[bucket] / self._tries[bucket]
            survival.append(odds)
        return survival

    def note(self, draft: Draft, accepted: int) -> None:
        """Of the guesses, so many came true; what follows the first wrong one was not judged."""
        for at in range(min(accepted + 1, len(draft.tokens))):
            bucket = self._bucket(draft.match + at)
            self._hits[bucket] = DECAY * self._hits[bucket] + (at < accepted)
            self._tries[bucket] = DECAY * self._tries[bucket] + 1

    @staticmethod
    def _bucket(match: int) -> int:
        return min(match, LONGEST_MATCH).bit_length()


class Request(Protocol):
    """What of a sequence is needed here."""

    tokens: list[int]
    lookup: Lookup

    @property
    def left(self) -> int: ...


class Drafter:
    """Chooses which guesses go into a decode step."""

    def __init__(self, limit: int, step_seconds: Callable[[int], float | None]) -> None:
        """`limit`: guesses in a batch; `step_seconds`: what a step of so many tokens takes."""
        self._limit = limit
        self._step_seconds = step_seconds
        self._odds = Odds()
        self._idle_steps = 0

    def find(self, request: Request) -> Draft:
        """What may follow; a step yields one token beside the guesses, and no more than is left."""
        return request.lookup.draft(request.tokens, min(self._limit, request.left - 1))

    def choose(self, drafts: list[Draft]) -> list[Draft]:
        """Of each decoding sequence's guesses, those worth verifying."""
        if not any(draft.tokens for draft in drafts):
            return drafts
        survival = [self._odds.survival(draft) for draft in drafts]
        lengths = share_out(survival, self._limit, self._step_seconds)
        if any(lengths):
            self._idle_steps = 0
        else:
            # Guesses that are never tried would be thought useless for ever.
            self._idle_steps += 1
            if self._idle_steps % PROBE_STEPS == 0:
                lengths = [min(len(draft.tokens), self._limit // len(drafts)) for draft in drafts]
        return [
            Draft(draft.tokens[:length], draft.match)
            for draft, length in zip(drafts, lengths, strict=True)
        ]

    def note(self, draft: Draft, accepted: int) -> None:
        self._odds.note(draft, accepted)


def share_out(
    survival: list[list[float]], limit: int, step_seconds: Callable[[int], float | None]
) -> list[int]:
    """How many guesses of each sequence make the most tokens a second, all sequences together.

    `survival[i][j]` is the probability that sequence i's guesses up to the j-th all come true. None
    are worth it where the time of a step is not known.
    """
    sequences = len(survival)
    seconds = step_seconds(sequences)
    if not seconds:
        return [0] * sequences
    ranked = sorted(((p, i) for i, odds in enumerate(survival) for p in odds), reverse=True)[:limit]
    expected = float(sequences)
    best, best_rate = 0, WORTH * sequences / seconds
    for count, (probability, _) in enumerate(ranked, start=1):
        expected += probability
        rate = expected / (step_seconds(sequences + count) or seconds)
        if rate > best_rate:
            best, best_rate = count, rate
    taken = Counter(i for _, i in ranked[:best])
    return [taken[i] for i in range(sequences)]
