"""`python -m bench`: all servers in turn, round by round, then the tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import requests
from rich.console import Console

from bench import corpus, load, machine, report, servers
from bench import model as models
from bench.ratios import Sample
from bench.visit import FULL, QUICK, Effort, visit, visit_quoting

MOST_LOAD = 0.5  # above it, somebody else uses the machine

Visit = Callable[[servers.Server, Path, corpus.Corpus, Effort], Iterator[tuple[str, float]]]


@click.command()
@click.option("--quick", is_flag=True, help="One short round: does it work?")
@click.option("--rounds", type=click.IntRange(1, 50), help="Instead of 5.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--language", type=click.Choice(["en", "ru"]), default="en", show_default=True)
@click.option("--threads", type=click.IntRange(1, 512), help="Default: all usable cores.")
@click.option("--kv-type", type=click.Choice(["f16", "q8_0"]), default="f16", show_default=True)
@click.option("--docs", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(
    quick: bool,
    rounds: int | None,
    model: Path | None,
    language: str,
    docs: Path | None,
    **options: str | int | None,
) -> None:
    """Compare vistrald with llama-server and llama_cpp.server.

    With --docs, its benchmarks.md, .png and .json are written anew.
    """
    setup = servers.Setup(
        model=(model or models.default()).resolve(),
        threads=int(options["threads"] or len(os.sched_getaffinity(0))),
        kv_type=str(options["kv_type"]),
    )
    effort = QUICK if quick else FULL
    rounds = rounds or effort.rounds
    before = os.getloadavg()[0]
    if before > MOST_LOAD:
        click.echo(f"load average {before:.2f}: what else runs here distorts the times", err=True)
    visits = _visits(setup)
    try:
        samples = list(_measure(visits, rounds, effort, corpus.read(language)))
    except (servers.ServerError, load.AskError, requests.RequestException) as error:
        raise click.ClickException(str(error)) from None
    done = report.Report(
        machine=machine.describe(),
        setup=setup,
        rounds=rounds,
        language=language,
        servers=[server for server, _ in visits],
        samples=samples,
        load_before=before,
    )
    console = Console()
    console.print(report.table(done), report.bars(done))
    if docs:
        write(done, docs)


def _visits(setup: servers.Setup) -> list[tuple[servers.Server, Visit]]:
    return [
        (servers.vistrald(setup), visit),
        (servers.llama_server(setup), visit),
        (servers.llama_cpp_server(setup), visit),
        (servers.vistrald(setup, name="vistrald, no drafts", drafts=False), visit_quoting),
        (servers.llama_server(setup, name="llama-server, drafts", drafts=True), visit_quoting),
    ]


def _measure(
    visits: list[tuple[servers.Server, Visit]], rounds: int, effort: Effort, texts: corpus.Corpus
) -> Iterator[Sample]:
    """Each round begins with another server: what comes first is not always the same one."""
    with TemporaryDirectory(prefix="bench-") as directory:
        for number in range(rounds):
            turn = number % len(visits)
            for server, make in [*visits[turn:], *visits[:turn]]:
                click.echo(f"round {number + 1} of {rounds}: {server.name}", err=True)
                home = Path(directory) / server.name.replace(", ", "-").replace(" ", "-")
                for row, value in make(server, home, texts, effort):
                    yield Sample(number, server.name, row, value)


def write(done: report.Report, docs: Path) -> None:
    document = docs / "benchmarks.md"
    text = report.put_into(document.read_text(encoding="utf-8"), report.markdown(done))
    report.plot(done, docs / "benchmarks.png")
    (docs / "benchmarks.json").write_text(report.as_json(done), encoding="utf-8")
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
