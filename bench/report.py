"""What was measured, as tables, Markdown, a plot and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bench.machine import Machine
from bench.ratios import BARS, ROWS, Bar, Cell, Row, Sample, Spread, by_round, ratio, spread
from bench.servers import Server, Setup

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
REFERENCE = "llama-server"  # what the plot compares with


@dataclass(frozen=True)
class Report:
    machine: Machine
    setup: Setup
    rounds: int
    language: str
    servers: list[Server]
    samples: list[Sample]
    load_before: float  # of the last minute, before anything was started

    def of(self, cell: Cell) -> Spread | None:
        return spread(by_round(self.samples, cell).values())

    def as_dict(self) -> dict[str, object]:
        return {
            "machine": self.machine.as_dict(),
            "setup": self.setup.as_dict(),
            "rounds": self.rounds,
            "language": self.language,
            "load_before": self.load_before,
            "servers": {server.name: server.shown() for server in self.servers},
            # server -> row -> values of each round; six digits say all that a clock does
            "samples": {
                server.name: {row: self._rounds(server.name, row) for row in self._rows(server)}
                for server in self.servers
            },
        }

    def _rows(self, server: Server) -> list[str]:
        names = (sample.row for sample in self.samples if sample.server == server.name)
        return list(dict.fromkeys(names))

    def _rounds(self, server: str, row: str) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in range(self.rounds)]
        for sample in self.samples:
            if (sample.server, sample.row) == (server, row):
                found[sample.round].append(float(f"{sample.value:.6g}"))
        return found


def table(report: Report) -> Table:
    """For a terminal."""
    made = Table(title="median (least - most) over the rounds")
    made.add_column("")
    for server in report.servers:
        made.add_column(server.name, justify="right")
    for row in ROWS:
        made.add_row(_title(row), *_values(report, row))
    return made


def bars(report: Report) -> Table:
    """The ratios that have to be kept to."""
    made = Table(title="ratios within a round: least - median - most")
    for column in ("", "of", "measured", "bar", ""):
        made.add_column(column)
    for bar in BARS:
        made.add_row(*_bar(report, bar))
    return made


def markdown(report: Report) -> str:
    """The same for a document, with what it was measured on and how the servers were started."""
    names = [server.name for server in report.servers]
    setup = report.setup
    lines = [
        f"Measured {report.machine.date} on {report.machine}; load average before the run: "
        f"{report.load_before:.2f}.",
        "",
        f"Model `{setup.model.name}` ({setup.model.stat().st_size / 1e6:.0f} MB), {setup.threads} "
        f"threads, {setup.context_tokens} tokens of context in {setup.kv_type}, {setup.slots} "
        f"sequences, {setup.batch_tokens} tokens a batch; {report.rounds} rounds.",
        "",
        *markdown_table(
            ["", "of", "least – median – most", "bar", ""], [_bar(report, bar) for bar in BARS]
        ),
        "",
        "Medians over the rounds, least and most in brackets:",
        "",
        *markdown_table(["", *names], [[_title(row), *_values(report, row)] for row in ROWS]),
        "",
        "| server | version | started as | |",
        "| --- | --- | --- | --- |",
        *(
            f"| {server.name} | {server.version} | `{server.shown()}` | {server.note} |"
            for server in report.servers
        ),
    ]
    return "\n".join(lines)


def put_into(document: str, measured: str) -> str:
    """The document with what stands between its markers replaced.

    Raises ValueError if it has no markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}"


def as_json(report: Report) -> str:
    """Everything, raw samples included; a line for each row of a server."""
    text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
    samples = re.compile(r"\[\s+\[[^{}]*?\]\s+\]")
    return samples.sub(lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def plot(report: Report, path: Path) -> None:
    """How many times better than llama-server, row by row, as PNG."""
    import matplotlib  # noqa: PLC0415 (a second's import that nothing else needs)

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    others = [each.name for each in report.servers if each.name != REFERENCE]
    rows = [row for row in ROWS if report.of((REFERENCE, row.key))]
    figure, axes = pyplot.subplots(figsize=(9, 0.75 * len(rows) + 1.2), layout="constrained")
    height = 0.8 / len(others)
    for at, name in enumerate(others):
        found = [(y, better(report.samples, name, row)) for y, row in enumerate(rows)]
        known = [(y, value) for y, value in found if value]
        axes.barh(
            [y + at * height for y, _ in known],
            [value.median for _, value in known],
            height * 0.9,
            label=name,
            xerr=[
                [value.median - value.least for _, value in known],
                [value.most - value.median for _, value in known],
            ],
            error_kw={"elinewidth": 1, "ecolor": "#444444"},
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([0.25, 0.5, 1, 2, 4, 8, 16], ["1/4", "1/2", "1", "2", "4", "8", "16"])
    axes.set_yticks([y + 0.4 - height / 2 for y in range(len(rows))], [row.title for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"times as good as {REFERENCE} (right of 1 is better); whiskers: all rounds")
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def better(samples: Sequence[Sample], name: str, row: Row) -> Spread | None:
    """How many times as good as the reference: above 1 is better, whatever the unit."""
    mine, theirs = (name, row.key), (REFERENCE, row.key)
    if row.better == "less":
        mine, theirs = theirs, mine
    return ratio(samples, mine, theirs)


def _title(row: Row) -> str:
    return f"{row.title}, {row.unit}"


def _values(report: Report, row: Row) -> list[str]:
    found = [report.of((server.name, row.key)) for server in report.servers]
    return [
        f"{each.median:.3g} ({each.least:.3g} – {each.most:.3g})" if each else "" for each in found
    ]


def _bar(report: Report, bar: Bar) -> list[str]:
    found = ratio(report.samples, bar.over, bar.under)
    sign = "≤" if bar.better == "less" else "≥"
    names = " / ".join(dict.fromkeys((bar.over[0], bar.under[0])))
    limit = f"{sign} {bar.limit:g}"
    if found is None:
        return [bar.title, names, "not measured", limit, ""]
    shown = f"{found.least:.2f} – {found.median:.2f} – {found.most:.2f}"
    return [bar.title, names, shown, limit, "met" if bar.met(found.median) else "missed"]


def markdown_table(head: list[str], body: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]
