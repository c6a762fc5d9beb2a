"""migrate: what moves an application off the old model, and back."""

from pathlib import Path

import click

from vistrald.cli.output import CONFIG_INVALID, as_json_option, print_json, refuse
from vistrald.migration.scan import Scan, scan

application_argument = click.argument("application", type=click.Path(path_type=Path))
models_option = click.option(
    "--models",
    "model_folders",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="A folder of old models outside of APPLICATION; may be repeated.",
)


@click.group()
def migrate() -> None:
    """Move an application off the old model, in one transaction that can be undone."""


@migrate.command(name="scan")
@application_argument
@models_option
@as_json_option
def scan_command(application: Path, model_folders: tuple[Path, ...], as_json: bool) -> None:
    """Find everything in APPLICATION that depends on the old model; changes nothing.

    Exits 0, or 2 if APPLICATION is not a folder.
    """
    result = read(application, model_folders, as_json)
    if as_json:
        print_json({"ok": True} | result.as_dict())
        return
    for each in result.findings:
        person = "  (a person must decide)" if each.person else ""
        place = f"{each.file}:{each.line}" if each.line else each.file
        click.echo(f"{place}  {each.action}  {each.what or each.kind}: {each.reason()}{person}")
    counts = ", ".join(f"{count} {action}" for action, count in result.counts.items())
    click.echo(f"{result.files} files, {len(result.findings)} findings: {counts or 'none'}")


def read(application: Path, model_folders: tuple[Path, ...], as_json: bool) -> Scan:
    try:
        return scan(application, model_folders)
    except NotADirectoryError as error:
        refuse({"ok": False, "application": str(application)}, as_json, str(error), CONFIG_INVALID)
