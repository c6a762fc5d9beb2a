"""The command line; thin. With --json, standard output is one JSON object and nothing else."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import click
import requests

from vistrald import __version__, log, model_file
from vistrald import ask as ask_client
from vistrald import smoke as smoke_test
from vistrald import warm as warm_client
from vistrald.settings import Settings, SettingsError, read_settings

CONFIG_INVALID = 2

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The TOML configuration file.",
)


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Serves one GGUF model through llama.cpp for a Russian legal assistant."""


@main.command()
@config_option
def serve(config: Path) -> None:
    """Serve until SIGTERM. Exits 2: configuration, 3: engine died, 4: model refused."""
    settings = _read(config, as_json=False)
    log.configure()
    from vistrald.server import Server  # noqa: PLC0415 (it loads libllama, which no other command needs)

    Server(settings).run()


@main.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
@as_json_option
def check_config(file: Path, as_json: bool) -> None:
    """Validate FILE. Exits 0, or 2 with every problem found."""
    settings = _read(file, as_json)
    if as_json:
        _print_json({"ok": True, "config": str(file), "settings": settings.model_dump(mode="json")})
    else:
        click.echo(f"{file}: valid")


@main.command("verify-model")
@config_option
@as_json_option
def verify_model(config: Path, as_json: bool) -> None:
    """Compare the model file with the configured size and sha256. Exits 0 or 1."""
    settings = _read(config, as_json)
    model = settings.model
    began = time.monotonic()
    report: dict[str, Any] = {"path": str(model.path), "sha256": model.sha256, "size": model.size}
    try:
        with click.progressbar(
            length=100, label="sha256", file=sys.stderr, hidden=as_json
        ) as progress:
            hashed = model_file.verify(
                model.path,
                model.size,
                model.sha256,
                settings.paths.state_dir,
                lambda fraction: progress.update(int(fraction * 100) - progress.pos),
            )
    except model_file.ModelFileError as error:
        report |= {
            "ok": False,
            "fault": error.fault,
            "message": str(error),
            "expected": error.expected,
            "found": error.found,
        }
        _finish(report, as_json, str(error))
    report |= {"ok": True, "hashed": hashed, "seconds": round(time.monotonic() - began, 3)}
    how = "hashed now" if hashed else "unchanged since it was hashed"
    _finish(report, as_json, f"{model.path}: good, {how}")


@main.command()
@config_option
@click.option("--timeout", default=60.0, show_default=True, help="Seconds for all steps together.")
@as_json_option
def smoke(config: Path, timeout: float, as_json: bool) -> None:
    """Is the running daemon live, ready, of this release and model, generating? Exits 0 or 1."""
    report = smoke_test.smoke(_read(config, as_json), timeout)
    lines = [
        f"{'ok' if step.ok else 'FAILED':6} {step.name}: {step.detail}" for step in report.steps
    ]
    _finish(report.as_dict(), as_json, "\n".join(lines))


@main.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
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


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
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
        _refuse(report, as_json, str(error), CONFIG_INVALID)
    except (ask_client.AskError, requests.RequestException, click.ClickException) as error:
        _refuse(report, as_json, str(error), 1)
    done = "nothing done" if dry_run else f"{report['saved']} computed, {report['known']} known"
    _finish(report | {"ok": True}, as_json, f"{file}: {done}")


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


def _read(config: Path, as_json: bool) -> Settings:
    try:
        return read_settings(config)
    except SettingsError as error:
        if as_json:
            _print_json({"ok": False, "config": str(config), "errors": error.as_dicts()})
        else:
            click.echo(str(error), err=True)
        sys.exit(CONFIG_INVALID)


def _refuse(report: dict[str, Any], as_json: bool, message: str, status: int) -> NoReturn:
    if as_json:
        _print_json(report | {"message": message})
    click.echo(message, err=True)
    sys.exit(status)


def _finish(report: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        _print_json(report)
    else:
        click.echo(text, err=not report["ok"])
    sys.exit(0 if report["ok"] else 1)


def _print_json(report: dict[str, Any]) -> None:
    click.echo(json.dumps(report, ensure_ascii=False))
