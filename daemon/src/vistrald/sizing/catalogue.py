"""Models and quantizations that are known beforehand: catalogue.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from vistrald.sizing.shape import Model, Shape


@dataclass(frozen=True)
class Quantization:
    name: str
    bits: float  # a weight, on average over a file
    kl: float  # mean KL divergence to f16
    type: str  # of most of its matrices


@dataclass(frozen=True)
class Entry:
    """A model with the sizes of its published files, in bytes."""

    name: str
    title: str
    source: str
    shape: Shape
    files: Mapping[str, int]


@dataclass(frozen=True)
class Catalogue:
    kl_source: str
    quantizations: Mapping[str, Quantization]  # the least loss first
    models: Mapping[str, Entry]

    def loss(self, name: str) -> float | None:
        """KL divergence; None for what is not quantized or not known."""
        found = self.quantizations.get(name)
        return found.kl if found else None


@cache
def read() -> Catalogue:
    text = resources.files("vistrald.sizing").joinpath("catalogue.toml").read_text("utf-8")
    data = tomllib.loads(text)
    quantizations = {
        name: Quantization(name, **fields) for name, fields in data["quantizations"].items()
    }
    models = {
        name: Entry(
            name, fields["title"], fields["source"], Shape(**fields["shape"]), fields["files"]
        )
        for name, fields in data["models"].items()
    }
    ordered = sorted(quantizations.values(), key=lambda each: each.kl)
    return Catalogue(data["kl_source"], {each.name: each for each in ordered}, models)


def variant(entry: Entry, quantization: str) -> Model:
    """A published file of a catalogued model."""
    size = entry.files[quantization]
    return _model(entry.title, entry.shape, quantization, size)


def estimate(name: str, shape: Shape, quantization: str) -> Model:
    """A file that nobody has made yet, by the type's bits a weight."""
    size = int(shape.parameters * read().quantizations[quantization].bits / 8)
    return _model(name, shape, quantization, size)


def requantized(model: Model, quantization: str) -> Model:
    """The same model in another type; the catalogue's file where it has one."""
    for entry in read().models.values():
        if entry.shape == model.shape and quantization in entry.files:
            return variant(entry, quantization)
    bits = read().quantizations[quantization].bits
    size = int(model.parameters * bits / 8)
    return _model(model.name, model.shape, quantization, size, model.parameters)


def _model(
    name: str, shape: Shape, quantization: str, size: int, parameters: float | None = None
) -> Model:
    """All of the file counts as weights, and all of them as of the quantization's type.

    An upper bound, by some ten megabytes of header and by the tensors of a better type.
    """
    known = read().quantizations[quantization]
    embedding = (known.type, int(shape.vocabulary * shape.hidden * known.bits / 8))
    return Model(
        name=name,
        shape=shape,
        quantization=quantization,
        file_size=size,
        weights=size,
        repackable={known.type: size},
        parameters=parameters or shape.parameters,
        exact=False,
        tied=embedding if shape.tied else None,
    )
