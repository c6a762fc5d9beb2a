"""What `vistrald plan` is asked about: a file, an address, a config.json, a name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistrald.gguf_header import Header, read_header
from vistrald.gguf_source import FileSource, HeaderError
from vistrald.sizing import catalogue, remote
from vistrald.sizing.shape import Model, Shape, ShapeError, from_config, from_header

MOST_PARTS = 100  # that a split model is read from; the hub's largest have thirty


class SourceError(Exception):
    """The source cannot be read; the message names it and the remedy."""


@dataclass(frozen=True)
class Subject:
    """A model: one file of it, or a shape that a file in any quantization can be made of."""

    title: str
    shape: Shape
    of: Callable[[str], Model]  # quantization -> a file
    file: Model | None = None
    published: int | None = None  # bytes of the files as they are, where no GGUF is named


def resolve(source: str) -> Subject:
    """Reads a header, a config.json or the catalogue. Raises SourceError."""
    token = _token(source)
    try:
        if source.startswith(("http://", "https://")):
            if source.partition("?")[0].endswith(".json"):
                return _of_config(source, remote.get_json(source, token))
            return _of_file(read_model(source, lambda url: remote.HttpSource(url, token)))
        if source.partition(":")[0] in catalogue.read().models:
            return _of_catalogue(source)
        if source.endswith(".json"):
            return _of_config(source, json.loads(Path(source).read_text("utf-8")))
        return _of_file(read_file(Path(source)))
    except (HeaderError, ShapeError, remote.RemoteError) as error:
        raise SourceError(str(error)) from None
    except ValueError as error:
        raise SourceError(f"{source} is not JSON: {error}") from None
    except OSError as error:
        names = ", ".join(catalogue.read().models)
        raise SourceError(
            f"{error.filename or source}: {error.strerror or error}; name a GGUF, its address, a "
            f"config.json, or one of the catalogue: {names}"
        ) from None


def _token(url: str) -> str | None:
    """The hub's token, for the hub alone."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return os.environ.get("HF_TOKEN") if url.startswith(f"{hub}/") else None


def read_file(path: Path) -> Model:
    """A local GGUF, all of its parts. Raises HeaderError, ShapeError, SourceError, OSError."""
    return read_model(str(path), lambda name: FileSource(Path(name)))


def read_model(name: str, opened: Callable[[str], FileSource | remote.HttpSource]) -> Model:
    """The parts of a split model lie beside the first one, as libllama looks for them."""

    def read(part: str) -> Header:
        with opened(part) as source:
            return read_header(source)

    first = read(name)
    if first.parts == 1:
        return from_header(first)
    ending = f"-00001-of-{first.parts:05}.gguf"
    if not name.endswith(ending) or first.parts > MOST_PARTS:
        raise SourceError(
            f"{name} is one of {first.parts} parts of a model; name the first one, …{ending} (at "
            f"most {MOST_PARTS} parts are read)"
        )
    stem = name.removesuffix(ending)
    numbers = range(2, first.parts + 1)
    return from_header(
        first, [read(f"{stem}-{number:05}-of-{first.parts:05}.gguf") for number in numbers]
    )


def _of_file(file: Model) -> Subject:
    return Subject(file.name, file.shape, lambda kind: catalogue.requantized(file, kind), file=file)


def _of_config(source: str, config: Any) -> Subject:
    if not isinstance(config, dict):
        raise SourceError(f"{source} is a {type(config).__name__}, expected an object")
    shape, bits = from_config(source, config)
    published = int(shape.parameters * bits / 8) if bits else None
    return Subject(
        source,
        shape,
        lambda kind: catalogue.estimate(source, shape, kind),
        published=published,
    )


def _of_catalogue(source: str) -> Subject:
    name, _, quantization = source.partition(":")
    entry = catalogue.read().models[name]
    if quantization and quantization not in entry.files:
        raise SourceError(
            f"{source}: there is no {quantization} of {name}; known are {', '.join(entry.files)}"
        )

    def of(kind: str) -> Model:
        if kind in entry.files:
            return catalogue.variant(entry, kind)
        return catalogue.estimate(entry.title, entry.shape, kind)

    return Subject(entry.title, entry.shape, of, file=of(quantization) if quantization else None)
