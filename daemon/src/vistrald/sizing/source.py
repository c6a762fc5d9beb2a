"""What `vistrald plan` is asked about: a file, an address, a config.json, a name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistrald.gguf_header import read_header
from vistrald.gguf_source import FileSource, HeaderError, Source
from vistrald.sizing import catalogue, remote
from vistrald.sizing.shape import Model, Shape, ShapeError, from_config, from_header

SPLIT = "split.count"  # GGUF key of a model in several files


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
            return _of_file(remote.HttpSource(source, token))
        if source.partition(":")[0] in catalogue.read().models:
            return _of_catalogue(source)
        if source.endswith(".json"):
            return _of_config(source, json.loads(Path(source).read_text("utf-8")))
        with FileSource(Path(source)) as file:
            return _of_file(file)
    except (HeaderError, ShapeError, remote.RemoteError) as error:
        raise SourceError(str(error)) from None
    except ValueError as error:
        raise SourceError(f"{source} is not JSON: {error}") from None
    except OSError as error:
        names = ", ".join(catalogue.read().models)
        raise SourceError(
            f"{source}: {error.strerror or error}; name a GGUF, its address, a config.json, or one "
            f"of the catalogue: {names}"
        ) from None


def _token(url: str) -> str | None:
    """The hub's token, for the hub alone."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return os.environ.get("HF_TOKEN") if url.startswith(f"{hub}/") else None


def _of_file(source: Source) -> Subject:
    header = read_header(source)
    parts = header.values.get(SPLIT, 1)
    if parts != 1:
        raise SourceError(
            f"{source.name} is one of {parts} parts of a model; merge them with llama-gguf-split "
            "--merge and name the result"
        )
    file = from_header(header)
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
