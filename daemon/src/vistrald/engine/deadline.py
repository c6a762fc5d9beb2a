"""What can be delivered in time: measured speed, estimates from it, and where a text may end.

No clock is read here: durations come in, durations and counts go out.
"""

import re
from bisect import bisect
from dataclasses import dataclass, field

DECAY = 0.8  # weight of what was known when a new measurement comes: a handful of batches count
# Below this a batch takes as long as its weights take to read, which says nothing of prefill.
SMALLEST_PREFILL = 8

# A batch of prefill alone may take this long: at 20 tokens/s, of a 24B model on eight cores, 40
# tokens, for which reading the weights takes little of the time.
LONGEST_PREFILL_SECONDS = 2.0
# Beside running answers, as long as so many of their steps, or as nobody notices in a text.
STALL_STEPS = 4
UNNOTICED_SECONDS = 0.25
SMALLEST_CHUNK = 16  # tokens; smaller ones would mostly read weights
UNMEASURED_CHUNK = 32

# Before a full stop, these end no sentence. Single letters (г., п., ч., initials) are a rule.
ABBREVIATIONS = frozenset(
    {"ст", "стст", "пп", "чч", "абз", "подп", "гл", "разд", "прим", "ред", "изд", "см", "ср"}
    | {"гг", "руб", "коп", "тыс", "млн", "млрд", "трлн", "мин", "сек", "экз", "шт"}
    | {"др", "пр", "им", "ул", "обл", "респ", "кв", "корп", "пер", "пос", "пл", "тел", "гр"}
    | {"стр", "рис", "табл", "гос", "зам", "проф", "доц", "акад"}
    | {"mr", "mrs", "ms", "dr", "prof", "art", "sec", "vs", "etc", "inc", "ltd", "jr", "cf"}
)
SENTENCE_END = re.compile(r"""(?P<mark>[.!?…]+)[»”"')\]*]*(?=\s|$)""")
LAST_WORD = re.compile(r"[\w-]+$")


@dataclass
class Rates:
    """Moving estimates of the machine's speed; None until something was measured."""

    _tokens: float = 0.0
    _seconds: float = 0.0
    _steps: dict[int, float] = field(default_factory=dict)  # tokens in a step -> seconds

    @property
    def prefill(self) -> float | None:
        """Tokens a second."""
        return self._tokens / self._seconds if self._seconds else None

    def step(self, tokens: int) -> float | None:
        """Seconds of a decode step with so many tokens, of different sequences or guessed ones.

        Between measured sizes a straight line; beyond the largest in proportion, which is rather
        too long than too short.
        """
        if not self._steps or tokens in self._steps:
            return self._steps.get(tokens)
        sizes = sorted(self._steps)
        above = bisect(sizes, tokens)
        if above == 0:
            return self._steps[sizes[0]]
        low = sizes[above - 1]
        if above == len(sizes):
            return self._steps[low] * tokens / low
        high = sizes[above]
        slope = (self._steps[high] - self._steps[low]) / (high - low)
        return self._steps[low] + (tokens - low) * slope

    def note(self, prefilled: int, decoded: int, seconds: float) -> None:
        """A batch of so many prompt tokens and so many decode tokens."""
        if not prefilled:
            known = self._steps.get(decoded, seconds)
            self._steps[decoded] = DECAY * known + (1 - DECAY) * seconds
        elif prefilled >= SMALLEST_PREFILL:
            # What the decode tokens cost in a mixed batch is known, or small beside the prompt's.
            seconds = max(seconds - ((self.step(decoded) or 0) if decoded else 0), seconds / 2)
            self._tokens = DECAY * self._tokens + prefilled
            self._seconds = DECAY * self._seconds + seconds


def prefill_chunk(rates: Rates, decoding: int, most: int) -> int:
    """Prompt tokens for a batch in which so many sequences decode, `most` at most.

    A batch is what a newcomer waits for, what an abort loses, and what holds running answers up.
    """
    if rates.prefill is None:
        return min(most, UNMEASURED_CHUNK)
    seconds = LONGEST_PREFILL_SECONDS
    if decoding:
        seconds = max(STALL_STEPS * (rates.step(decoding) or 0), UNNOTICED_SECONDS)
    return min(most, max(SMALLEST_CHUNK, int(seconds * rates.prefill)))


@dataclass(frozen=True)
class Load:
    """What a new sequence shares the machine with."""

    decoding: int = 0  # sequences
    prefill_tokens: int = 0  # that are computed beside its own
    mixed_chunk: int = 32  # prompt tokens in a batch in which others decode


def prefill_seconds(rates: Rates, tokens: int, load: Load) -> float | None:
    """Time until so many prompt tokens are computed; None if no rate is known."""
    if rates.prefill is None:
        return None
    tokens += load.prefill_tokens
    seconds = tokens / rates.prefill
    if load.decoding:
        batches = -(-tokens // load.mixed_chunk)
        seconds += batches * (rates.step(load.decoding) or 0)
    return seconds


def answer_tokens(rates: Rates, seconds: float, load: Load) -> int | None:
    """Tokens that can be generated in the time; None if no rate is known. The first is free."""
    step = rates.step(load.decoding + 1)
    return None if step is None else 1 + max(0, int(seconds / step))


def full_sentences(text: str) -> int:
    """Length of the text up to its last full sentence's end; of all of it if there is none."""
    for match in reversed(list(SENTENCE_END.finditer(text))):
        if _ends_sentence(text, match):
            return match.end()
    return len(text)


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    following = text[match.end() :].lstrip()[:1]
    if following.islower():
        return False
    if match["mark"] != ".":
        return True
    word = LAST_WORD.search(text, 0, match.start())
    if word is None:
        return True  # a closing bracket or a quotation mark
    last = word[0].lower()
    if last.isdigit():
        # «1.» opens a list; a number that the text breaks off at may go on: «158.1».
        line_start = text.rfind("\n", 0, word.start()) + 1
        return bool(following) and bool(text[line_start : word.start()].strip())
    return len(last) > 1 and last not in ABBREVIATIONS
