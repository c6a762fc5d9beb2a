"""plan: what a model needs of memory, before it is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError
from rich.console import Console, RenderableType

from vistrald.cli.output import (
    CONFIG_INVALID,
    REFUSED,
    as_json_option,
    print_json,
    read_config,
    refuse,
)
from vistrald.settings import EngineSection

if TYPE_CHECKING:
    from vistrald.settings import Settings
    from vistrald.sizing.account import Use
    from vistrald.sizing.host import Host
    from vistrald.sizing.plan import Variant

CONFIG = Path("/etc/vistrald.toml")
MODELS = Path("/var/lib/vistral")
CATALOGUED = "vistral-24b"
OLD = "saiga-7b"
# Of each model, those that are weighed against each other.
COMPARED = {OLD: ("Q4_K_M", "Q8_0"), CATALOGUED: ("IQ4_XS", "Q4_K_S", "Q4_K_M", "Q8_0")}


@click.command()
@click.argument("source", required=False)
@click.option("--config", type=click.Path(path_type=Path), help=f"Default: {CONFIG} if it exists.")
@click.option("--cap", type=click.IntRange(min=1), default=14 * 10**9, show_default=True)
@click.option("--context", "context_tokens", type=click.IntRange(256, 2**20))
@click.option("--users", type=click.IntRange(1, 64))
@click.option("--kv-type", type=click.Choice(["f16", "q8_0"]))
@click.option("--batch", "batch_tokens", type=click.IntRange(128, 8192))
@click.option("--load-mode", type=click.Choice(["none", "mmap"]))
@click.option("--engine", help="Settings of [engine] as JSON, as an inventory has them.")
@click.option("--memory", type=click.IntRange(min=1), help="Bytes of RAM, of a host elsewhere.")
@click.option("--cores", type=click.IntRange(1, 512), help="Of a host elsewhere.")
@click.option("--no-repack", is_flag=True, help="Weights as they are in the file.")
@click.option("--quantization", help="Instead of the file's, or of the best that fits.")
@click.option("--compare", is_flag=True, help="The old model beside the new one.")
@click.option("--language", type=click.Choice(["ru", "en"]), default="ru", show_default=True)
@as_json_option
def plan(
    source: str | None, config: Path | None, compare: bool, as_json: bool, **options: Any
) -> None:
    """What the model SOURCE needs of memory, against a cap in bytes; what else fits; how fast.

    SOURCE is a GGUF, the address of one (only its header is fetched), a config.json or its address,
    or a name of the catalogue with or without a type, such as vistral-24b:IQ4_XS. Without it, the
    configured model. Exits 0 if it fits, 1 if not, 2 if SOURCE cannot be read.
    """
    # rich, requests and numpy, for this command alone
    from vistrald.sizing import catalogue, table  # noqa: PLC0415
    from vistrald.sizing import plan as planning  # noqa: PLC0415
    from vistrald.sizing.source import SourceError, resolve  # noqa: PLC0415

    if config is None and CONFIG.exists():
        config = CONFIG
    settings = read_config(config, as_json) if config else None
    use = _use(settings, options)
    host = _host(settings.model.path if settings else MODELS, options)
    cap, language = options["cap"], options["language"]
    if compare:
        variants = _compared(use, host, cap)
        if as_json:
            print_json({"ok": True, "variants": [planning.variant_as_dict(v) for v in variants]})
        else:
            _print(table.comparison(variants, language))
        return
    name = source or (str(settings.model.path) if settings else CATALOGUED)
    quantization, known = options["quantization"], catalogue.read().quantizations
    if quantization and quantization not in known:
        message = f"--quantization {quantization} is not known; known are {', '.join(known)}"
        refuse({"ok": False, "source": name}, as_json, message, CONFIG_INVALID)
    try:
        subject = resolve(name)
    except SourceError as error:
        refuse({"ok": False, "source": name}, as_json, str(error), CONFIG_INVALID)
    made = planning.make(subject, use, host, cap, quantization)
    if as_json:
        print_json({"source": name, **planning.as_dict(made)})
    else:
        _print(table.tables(made, language))
    if not made.chosen.fits:
        if as_json:
            click.echo(planning.refusal(made.chosen, made.remedies), err=True)
        sys.exit(REFUSED)


def _use(settings: Settings | None, options: dict[str, Any]) -> Use:
    """As configured, with what the command line changes."""
    from vistrald.sizing.account import Use  # noqa: PLC0415

    use = Use.of(settings.engine) if settings else Use()
    if options["engine"]:
        try:
            use = Use.of(EngineSection.model_validate_json(options["engine"]))
        except ValidationError as error:
            raise click.UsageError(f"--engine: {error}") from None
    names = ("context_tokens", "users", "kv_type", "batch_tokens", "load_mode")
    given = {name: options[name] for name in names if options[name] is not None}
    if options["no_repack"]:
        given["repack"] = False
    return replace(use, **given)


def _host(path: Path, options: dict[str, Any]) -> Host:
    """As it is here, or as another is told to be; how fast that reads memory is not known."""
    from vistrald.sizing.host import this_host  # noqa: PLC0415

    if not options["memory"] and not options["cores"]:
        return this_host(path)
    host = this_host(path, measure=False)
    memory, cores = options["memory"] or host.memory, options["cores"] or host.cores
    return replace(host, memory=memory, limit=None, cores=cores)


def _compared(use: Use, host: Host, cap: int) -> list[Variant]:
    """The old model as its application loads it: llama_cpp.Llama maps the file and repacks."""
    from vistrald.sizing import catalogue  # noqa: PLC0415
    from vistrald.sizing.plan import evaluate  # noqa: PLC0415

    found = []
    for name, quantizations in COMPARED.items():
        entry = catalogue.read().models[name]
        used = replace(use, load_mode="mmap", repack=True, users=1) if name == OLD else use
        for kind in quantizations:
            found.append(evaluate(catalogue.variant(entry, kind), used, host, cap))
    return found


def _print(shown: Iterator[RenderableType]) -> None:
    console = Console()
    for each in shown:
        console.print(each)
