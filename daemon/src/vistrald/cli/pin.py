"""pin: an entry for the inventory's catalogue of models."""

import os
import sys
from pathlib import Path

import click

from vistrald import pin as pins
from vistrald.cli.output import REFUSED, as_json_option, finish, refuse


@click.command()
@click.argument("target")
@click.option("--name", help="The entry's name; by default from the file's.")
@click.option(
    "--download",
    type=click.Path(path_type=Path),
    help="Fetch the file there and hash it; of a split model, a folder.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the token of a gated repository; else the variable HF_TOKEN.",
)
@as_json_option
def pin(
    target: str, name: str | None, download: Path | None, token_file: Path | None, as_json: bool
) -> None:
    """Print the catalogue's entry of TARGET: an address or a local GGUF file.

    Of a split model, TARGET is the first file. Size and sha256 come from the server where it states
    them, as Hugging Face does, or from the file's bytes. Exits 0 or 1.
    """
    found: list[pins.Pin] = []
    try:
        token = token_file.read_text().strip() if token_file else os.environ.get("HF_TOKEN", "")
        parts = pins.all_parts(target)
        for part in parts:
            found.append(_pin(part, token, _kept(download, part, len(parts)), as_json))
    except (OSError, UnicodeDecodeError, pins.PinError) as error:
        refuse({"ok": False, "target": target}, as_json, str(error), REFUSED)
    entry = name or pins.entry_name(found[0].file)
    report = {"ok": True, "name": entry, "entry": pins.as_entry(found)}
    finish(report, as_json, pins.as_yaml(entry, found))


def _pin(part: str, token: str, keep: Path | None, quiet: bool) -> pins.Pin:
    label = part.rpartition("/")[2].partition("?")[0]
    with click.progressbar(length=1000, label=label, file=sys.stderr, hidden=quiet) as bar:

        def tell(done: int, total: int) -> None:
            bar.update(done * 1000 // max(total, done, 1) - bar.pos)

        if "://" in part:
            return pins.pin_url(part, token, keep, tell)
        return pins.pin_file(Path(part), tell)


def _kept(download: Path | None, part: str, parts: int) -> Path | None:
    if download is None or parts == 1:
        return download
    download.mkdir(parents=True, exist_ok=True)
    return download / part.rpartition("/")[2].partition("?")[0]
