"""From samples to rows, ratios and bars. Pure.

A ratio is formed within each round, of what two servers did minutes apart, and only then summarised
over the rounds: what else the machine was doing in a round is in both of its sides.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sample:
    round: int
    server: str
    row: str
    value: float


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    unit: str
    better: Literal["less", "more"]


ROWS = (
    Row("ready", "time to ready", "s", "less"),
    Row("cold", "TTFT, nothing known", "s", "less"),
    Row("warm", "TTFT, known document, new question", "s", "less"),
    Row("restart", "TTFT after a restart, known document", "s", "less"),
    Row("decode", "one answer alone", "tokens/s", "more"),
    Row("quote", "one quoting answer alone", "tokens/s", "more"),
    Row("total4", "4 users, all answers", "tokens/s", "more"),
    Row("p95_4", "4 users, p95 of the time to the whole answer", "s", "less"),
    Row("total8", "8 users, all answers", "tokens/s", "more"),
    Row("p95_8", "8 users, p95 of the time to the whole answer", "s", "less"),
    Row("memory", "peak memory (PSS)", "MB", "less"),
)

Cell = tuple[str, str]  # server, row


@dataclass(frozen=True)
class Spread:
    """Of one value per round."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Bar:
    """What a ratio has to keep to: the median over the rounds counts."""

    title: str
    over: Cell
    under: Cell
    limit: float
    better: Literal["less", "more"]

    def met(self, median: float) -> bool:
        return median <= self.limit if self.better == "less" else median >= self.limit


BARS = (
    Bar("decode alone", ("vistrald", "decode"), ("llama-server", "decode"), 0.97, "more"),
    Bar("4 users, total", ("vistrald", "total4"), ("llama-server", "total4"), 1.3, "more"),
    Bar("8 users, total", ("vistrald", "total8"), ("llama-server", "total8"), 1.3, "more"),
    Bar("warm TTFT", ("vistrald", "warm"), ("llama-server", "warm"), 1.0, "less"),
    Bar(
        "known document after a restart, to cold",
        ("vistrald", "restart"),
        ("vistrald", "cold"),
        0.15,
        "less",
    ),
    Bar(
        "quoting answer, to no drafts",
        ("vistrald", "quote"),
        ("vistrald, no drafts", "quote"),
        1.5,
        "more",
    ),
    Bar("4 users, total", ("vistrald", "total4"), ("llama_cpp.server", "total4"), 4.0, "more"),
)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def by_round(samples: Iterable[Sample], cell: Cell) -> dict[int, float]:
    """The median of the cell's samples in each round that has any."""
    found: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        if (sample.server, sample.row) == cell:
            found[sample.round].append(sample.value)
    return {each: statistics.median(values) for each, values in found.items()}


def spread(values: Iterable[float]) -> Spread | None:
    """None of no values."""
    known = list(values)
    return Spread(min(known), statistics.median(known), max(known)) if known else None


def ratio(samples: Sequence[Sample], over: Cell, under: Cell) -> Spread | None:
    """Of the rounds that have both cells; None if there is no such round."""
    upper, lower = by_round(samples, over), by_round(samples, under)
    return spread(upper[each] / lower[each] for each in upper.keys() & lower.keys())
