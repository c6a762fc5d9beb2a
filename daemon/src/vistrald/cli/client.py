"""What talks to a running daemon: ask, warm."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import requests

from vistrald import ask as ask_client
from vistrald import warm as warm_client
from vistrald.cli.output import (
    CONFIG_INVALID,
    REFUSED,
    as_json_option,
    finish,
    refuse,
    url_option,
)


@click.command()
@url_option
@click.option(
    "--context-file", type=click.Path(path_type=Path, exists=True), help="Documents, UTF-8 text."
)
@click.argument("question")
def ask(url: str, context_file: Path | None, question: str) -> None:
    """Ask QUESTION and stream the answer; token rates come last."""
    context = context_file.read_text(encoding="utf-8") if context_file else None
    try:
        for piece in ask_client.ask(url.rstrip("/"), question, context):
            if isinstance(piece, str):
                click.echo(piece, nl=False)
            else:
                click.echo(_rates(piece))
    except (ask_client.AskError, requests.RequestException) as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@url_option
@click.option("--dry-run", is_flag=True, help="Only say what it would take.")
@as_json_option
def warm(file: Path, url: str, dry_run: bool, as_json: bool) -> None:
    """Compute the documents of FILE beforehand and keep them on the daemon's disk.

    FILE is JSONL: {"id": …, "context": …} a line. A second run goes on where the first was cut off.
    Exits 0, 1 if the daemon refused or the cap is too small, 2 if FILE is wrong.
    """
    report: dict[str, Any] = {"file": str(file), "ok": False}
    try:
        entries = warm_client.read_corpus(file)
        warmer = warm_client.Warmer(url.rstrip("/"))
        report |= (plan := warmer.plan(entries))
        click.echo(_estimate(plan), err=True)
        if plan["bytes"] > plan["disk_cache_bytes"]:
            raise click.ClickException(
                f"{file}: all entries together need {plan['bytes']} bytes on disk, the cap is "
                f"engine.disk_cache_bytes = {plan['disk_cache_bytes']}; raise it or leave some out"
            )
        if not dry_run:
            with click.progressbar(
                length=plan["tokens"], label="tokens", file=sys.stderr, hidden=as_json
            ) as progress:
                report |= warmer.run(entries, progress.update)
    except warm_client.CorpusError as error:
        refuse(report, as_json, str(error), CONFIG_INVALID)
    except (ask_client.AskError, requests.RequestException, click.ClickException) as error:
        refuse(report, as_json, str(error), REFUSED)
    done = "nothing done" if dry_run else f"{report['saved']} computed, {report['known']} known"
    finish(report | {"ok": True}, as_json, f"{file}: {done}")


def _estimate(plan: dict[str, Any]) -> str:
    seconds = plan["seconds"]
    time_needed = "not known yet" if seconds is None else f"{timedelta(seconds=round(seconds))}"
    return (
        f"{plan['entries']} prefixes, {plan['known']} of them known; {plan['tokens']} tokens to "
        f"compute, which takes {time_needed} of a machine that has nothing else to do; "
        f"{plan['bytes'] / 1e9:.2f} GB on disk, of {plan['disk_cache_bytes'] / 1e9:.2f} GB"
    )


def _rates(summary: dict[str, Any]) -> str:
    timings = summary["timings"]
    return (
        f"\n\nqueue {timings['queue_ms']:.0f} ms, "
        f"prompt {timings['prompt_n']} tokens at {timings['prompt_per_second']:.1f}/s, "
        f"first token after {timings['ttft_ms']:.0f} ms, "
        f"answer {timings['predicted_n']} tokens at {timings['predicted_per_second']:.1f}/s, "
        f"ended by {summary['finish_reason']}"
    )
