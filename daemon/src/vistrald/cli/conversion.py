"""Making a model file: convert, quantize."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from vistrald.cgroup import usable_cores
from vistrald.cli.output import REFUSED, as_json_option, finish, refuse
from vistrald.conversion import destination as files
from vistrald.conversion import quantize as quantizing
from vistrald.conversion.errors import ConversionError
from vistrald.model_file import hash_file

path_argument = click.Path(path_type=Path)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only check, and say what it takes.")


@click.command()
@click.argument("source", type=path_argument)
@click.argument("dest", type=path_argument)
@click.option("--type", "kind", type=click.Choice(["F16", "Q8_0"]), required=True)
@click.option("--chat-template", type=path_argument, help="A Jinja file, before the model's own.")
@click.option("--name", help="general.name in the GGUF. Default: the source folder's name.")
@dry_run_option
@as_json_option
def convert(  # noqa: PLR0913, PLR0917 (click's options)
    source: Path,
    dest: Path,
    kind: Any,
    chat_template: Path | None,
    name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE, a folder of MLX files (affine, 8 or 4 bits), to the GGUF file DEST.

    Needs under 1.5 GB of memory. An interrupted run leaves no DEST; the next one begins anew. Exits
    0 or 1.
    """
    # Only here: numpy and gguf take half a second that no other command needs.
    from vistrald.conversion import convert as converting  # noqa: PLC0415

    report: dict[str, Any] = {"ok": False, "source": str(source), "path": str(dest), "type": kind}
    began = time.monotonic()
    try:
        planned = converting.plan(source, kind, chat_template)
        report["warnings"] = planned.vocabulary.warnings
        for warning in planned.vocabulary.warnings:
            click.echo(warning, err=True)
        report["needed_bytes"] = planned.needed_bytes
        _say_needed(dest, planned.needed_bytes)
        files.check(dest, planned.needed_bytes)
        if not dry_run:
            with click.progressbar(
                length=planned.tensor_bytes, label=dest.name, file=sys.stderr, hidden=as_json
            ) as bar:
                converting.convert(planned, dest, name or source.resolve().name, bar.update)
    except ConversionError as error:
        refuse(report, as_json, str(error), REFUSED)
    _finish(report, dest, dry_run, as_json, began)


@click.command()
@click.argument("source", type=path_argument)
@click.argument("dest", type=path_argument)
@click.option("--type", "kind", type=click.Choice(list(quantizing.FILE_TYPES)), required=True)
@click.option("--imatrix", type=path_argument, help="Importance matrix, GGUF of llama-imatrix.")
@click.option("--threads", type=click.IntRange(1, 512), help="Default: all usable cores.")
@dry_run_option
@as_json_option
def quantize(  # noqa: PLR0913, PLR0917 (click's options)
    source: Path,
    dest: Path,
    kind: str,
    imatrix: Path | None,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make of SOURCE, a GGUF in F32, F16, BF16 or Q8_0, the smaller DEST.

    An interrupted run leaves no DEST; the next one begins anew. Exits 0 or 1.
    """
    report: dict[str, Any] = {"ok": False, "source": str(source), "path": str(dest), "type": kind}
    began = time.monotonic()
    request = quantizing.Request(
        source=source,
        destination=dest,
        file_type=quantizing.FILE_TYPES[kind],
        threads=threads or usable_cores(),
        imatrix=imatrix,
    )
    try:
        quantizing.check_source(source)
        report["needed_bytes"] = needed = quantizing.needed_bytes(request)
        _say_needed(dest, needed)
        files.check(dest, needed)
        if not dry_run:
            with click.progressbar(
                length=1000, label=dest.name, file=sys.stderr, hidden=as_json
            ) as bar:
                quantizing.quantize(
                    request, lambda fraction: bar.update(int(fraction * 1000) - bar.pos)
                )
    except ConversionError as error:
        refuse(report, as_json, str(error), REFUSED)
    _finish(report, dest, dry_run, as_json, began)


def _say_needed(dest: Path, needed: int) -> None:
    click.echo(f"{dest} will take up to {needed / 1e9:.2f} GB of disk", err=True)


def _finish(report: dict[str, Any], dest: Path, dry_run: bool, as_json: bool, began: float) -> None:
    """Prints the new file's pin: what the inventory needs to trust it."""
    report["ok"] = True
    text = f"{dest}: nothing written"
    if not dry_run:
        report["seconds"] = round(time.monotonic() - began, 1)
        report["size"] = size = dest.stat().st_size
        report["sha256"] = hash_file(dest, size, lambda _: None)
        text = (
            f"{dest}, made in {report['seconds']} s; its pin:\n"
            f"model_sha256: {report['sha256']}\nmodel_size_bytes: {size}"
        )
    finish(report, as_json, text)
