"""tune: measures a host."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vistrald.cli.output import (
    REFUSED,
    as_json_option,
    config_option,
    finish,
    read_config,
    refuse,
)

if TYPE_CHECKING:
    from vistrald.trial import Speed


@click.command()
@config_option
@click.option("--write", type=click.Path(path_type=Path), help="Write the choice there, as YAML.")
@as_json_option
def tune(config: Path, write: Path | None, as_json: bool) -> None:
    """Measure which engine settings are the fastest here; the daemon must be stopped.

    Takes a few loads of the model. The choice is for the inventory (daemon_engine): a release's own
    configuration is never changed. Exits 0 or 1.
    """
    settings = read_config(config, as_json)
    from vistrald import tune as tuning  # noqa: PLC0415 (it loads libllama)

    def tell(speed: "Speed") -> None:
        steps = "  ".join(f"{size}: {each * 1000:.1f}" for size, each in speed.steps.items())
        click.echo(
            f"{tuning.describe(speed.trial):45} prefill {speed.prefill:7.1f} tokens/s; ms of a "
            f"step with so many tokens, {speed.depth} in the cache:  {steps}",
            err=True,
        )

    try:
        choice = tuning.tune(settings, tell)
    except tuning.TuneError as error:
        refuse({"ok": False, "config": str(config)}, as_json, str(error), REFUSED)
    text = tuning.as_yaml(choice.engine)
    if write:
        write.write_text(text, encoding="utf-8")
    report = {
        "ok": True,
        "engine": choice.engine,
        "speeds": [speed.model_dump(mode="json") for speed in choice.speeds],
    }
    finish(report, as_json, text)
