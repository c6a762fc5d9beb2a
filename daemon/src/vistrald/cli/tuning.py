"""tune: measures a host."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from vistrald.cli.output import (
    REFUSED,
    as_json_option,
    config_option,
    finish,
    read_config,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vistrald.trial import Speed, Trial


@click.command()
@config_option
@click.option("--write", type=click.Path(path_type=Path), help="Write the choice there, as YAML.")
@as_json_option
def tune(config: Path, write: Path | None, as_json: bool) -> None:
    """Measure which engine settings are the fastest here; the daemon must be stopped.

    Takes a few loads of the model. The choice is for the inventory (daemon_engine, huge pages): a
    release's own configuration is never changed. Exits 0 or 1.
    """
    settings = read_config(config, as_json)
    from vistrald import tune as tuning  # noqa: PLC0415 (it loads libllama)

    def tell(speed: "Speed") -> None:
        click.echo(f"measured: {tuning.describe(speed.trial)}", err=True)

    try:
        choice = tuning.tune(settings, tell)
    except tuning.TuneError as error:
        refuse({"ok": False, "config": str(config)}, as_json, str(error), REFUSED)
    text = tuning.as_yaml(choice.variables)
    if write:
        write.write_text(text, encoding="utf-8")
    report = {
        "ok": True,
        "variables": choice.variables,
        "speeds": [speed.model_dump(mode="json") for speed in choice.speeds],
    }
    if not as_json:
        Console().print(_table(choice.speeds, tuning.describe))
    finish(report, as_json, text)


def _table(speeds: "list[Speed]", describe: "Callable[[Trial], str]") -> Table:
    table = Table(title=f"{speeds[0].backend}; steps with {speeds[0].depth} tokens in the cache")
    for title in ("", "load, s", "prefill, tokens/s"):
        table.add_column(title, justify="left" if not title else "right")
    for size in speeds[0].steps:
        table.add_column(f"step of {size}, ms", justify="right")
    for speed in speeds:
        table.add_row(
            describe(speed.trial),
            f"{speed.load_seconds:.1f}",
            f"{speed.prefill:.1f}",
            *(f"{seconds * 1000:.1f}" for seconds in speed.steps.values()),
        )
    return table
