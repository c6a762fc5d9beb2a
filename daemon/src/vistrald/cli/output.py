"""What the commands have in common: options, and how they answer people and machines."""

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from vistrald.settings import Settings, SettingsError, read_settings

REFUSED, CONFIG_INVALID = 1, 2  # exit status

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    help="The TOML configuration file.",
)
url_option = click.option("--url", default="http://127.0.0.1:8080", show_default=True)


def read_config(config: Path, as_json: bool) -> Settings:
    try:
        return read_settings(config)
    except SettingsError as error:
        if as_json:
            print_json({"ok": False, "config": str(config), "errors": error.as_dicts()})
        else:
            click.echo(str(error), err=True)
        sys.exit(CONFIG_INVALID)


def refuse(report: dict[str, Any], as_json: bool, message: str, status: int) -> NoReturn:
    if as_json:
        print_json(report | {"message": message})
    click.echo(message, err=True)
    sys.exit(status)


def finish(report: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print_json(report)
    else:
        click.echo(text, err=not report["ok"])
    sys.exit(0 if report["ok"] else REFUSED)


def print_json(report: dict[str, Any]) -> None:
    click.echo(json.dumps(report, ensure_ascii=False))
