"""The daemon itself and what is asked about it: serve, check-config, verify-model, smoke."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from vistrald import log, model_file, model_parts
from vistrald import smoke as smoke_test
from vistrald.cli.output import as_json_option, config_option, finish, print_json, read_config


@click.command()
@config_option
def serve(config: Path) -> None:
    """Serve until SIGTERM. Exits 2: configuration, 3: engine died, 4: model refused."""
    settings = read_config(config, as_json=False)
    log.configure()
    from vistrald.server import Server  # noqa: PLC0415 (it loads libllama, which no other command needs)

    Server(settings).run()


@click.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
@as_json_option
def check_config(file: Path, as_json: bool) -> None:
    """Validate FILE. Exits 0, or 2 with every problem found."""
    settings = read_config(file, as_json)
    if as_json:
        print_json({"ok": True, "config": str(file), "settings": settings.model_dump(mode="json")})
    else:
        click.echo(f"{file}: valid")


@click.command("verify-model")
@config_option
@as_json_option
def verify_model(config: Path, as_json: bool) -> None:
    """Compare the model's files with the configured sizes and digests. Exits 0 or 1."""
    settings = read_config(config, as_json)
    model = settings.model
    began = time.monotonic()
    report: dict[str, Any] = {"path": str(model.path), "sha256": model.sha256, "size": model.size}
    try:
        with click.progressbar(
            length=100, label="sha256", file=sys.stderr, hidden=as_json
        ) as progress:
            hashed = model_parts.verify(
                model,
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
        finish(report, as_json, str(error))
    report |= {"ok": True, "hashed": hashed, "seconds": round(time.monotonic() - began, 3)}
    how = "hashed now" if hashed else "unchanged since it was hashed"
    finish(report, as_json, f"{model.path}: good, {how}")


@click.command()
@config_option
@click.option("--timeout", default=60.0, show_default=True, help="Seconds for all steps together.")
@as_json_option
def smoke(config: Path, timeout: float, as_json: bool) -> None:
    """Is the running daemon live, ready, of this release and model, generating? Exits 0 or 1."""
    report = smoke_test.smoke(read_config(config, as_json), timeout)
    lines = [
        f"{'ok' if step.ok else 'FAILED':6} {step.name}: {step.detail}" for step in report.steps
    ]
    finish(report.as_dict(), as_json, "\n".join(lines))
