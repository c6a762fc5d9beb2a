"""A model as far as memory and speed see it: from a GGUF header or a Hugging Face config.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vistrald.gguf_header import Array, Header, Tensor

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
MATRIX = 2  # dimensions
ROWS_TOGETHER = 8  # that a repacked block interleaves

# enum llama_ftype, the value of general.file_type -> the name that files carry
FILE_TYPES = {
    0: "F32", 1: "F16", 32: "BF16", 7: "Q8_0", 18: "Q6_K", 17: "Q5_K_M", 16: "Q5_K_S",
    15: "Q4_K_M", 14: "Q4_K_S", 25: "IQ4_NL", 30: "IQ4_XS", 2: "Q4_0", 3: "Q4_1", 13: "Q3_K_L",
    12: "Q3_K_M", 27: "IQ3_M", 22: "IQ3_XS", 11: "Q3_K_S", 10: "Q2_K",
}  # fmt: skip


class ShapeError(Exception):
    """The model's description lacks what is needed; the message names it."""


@dataclass(frozen=True)
class Shape:
    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: float  # of a layer, on average
    key_length: int
    value_length: int
    vocabulary: int
    context: int  # tokens that it was trained for
    merges: int = 0  # of its tokenizer
    tied: bool = False  # the output matrix is the embedding

    @property
    def parameters(self) -> float:
        """Of a dense transformer with a gated feed-forward part."""
        queries = self.heads * self.key_length
        keys_and_values = self.kv_heads * (self.key_length + self.value_length)
        attention = self.hidden * (queries + keys_and_values) + queries * self.hidden
        layer = attention + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return embeddings + self.layers * layer + self.hidden


@dataclass(frozen=True)
class Model:
    """One file of a model, there or not; sizes in bytes."""

    name: str
    shape: Shape
    quantization: str
    file_size: int
    weights: int  # all tensors
    repackable: Mapping[str, int]  # tensor type -> bytes of matrices that are multiplied with
    parameters: float
    exact: bool  # from a file's own header, not from a catalogue or an estimate
    # Type and bytes of an embedding that is the output matrix too: repacked, it is there twice.
    tied: tuple[str, int] | None = None


def from_header(header: Header, further: Sequence[Header] = ()) -> Model:
    """`further`: the other parts of a split model. Raises ShapeError."""
    values, architecture = header.values, header.architecture

    def number(key: str, default: float | None = None) -> float:
        """The key's value; of one for each layer, the average."""
        value = values.get(f"{architecture}.{key}")
        if isinstance(value, tuple) and value:
            return sum(value) / len(value)
        if isinstance(value, (int, float)) and value > 0:
            return value
        if default is None:
            raise ShapeError(
                f"{header.source}: {architecture}.{key} is {value!r}, expected a positive number; "
                "without it no memory can be planned: convert the model anew"
            )
        return default

    files = (header, *further)
    tensors = {tensor.name: tensor for file in files for tensor in file.tensors}
    embedding = None if OUTPUT in tensors else tensors.get(EMBEDDING)
    heads = int(number("attention.head_count"))
    hidden = int(number("embedding_length"))
    key_length = int(number("attention.key_length", hidden // heads))
    shape = Shape(
        architecture=architecture,
        layers=int(number("block_count")),
        hidden=hidden,
        feed_forward=int(number("feed_forward_length")),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        key_length=key_length,
        value_length=int(number("attention.value_length", hidden // heads)),
        vocabulary=_length(header, "tokenizer.ggml.tokens"),
        context=int(number("context_length")),
        merges=_length(header, "tokenizer.ggml.merges"),
        tied=embedding is not None,
    )
    return Model(
        name=str(values.get("general.name", header.source)),
        shape=shape,
        quantization=_quantization(header, tensors.values()),
        file_size=sum(file.file_size for file in files),
        weights=sum(file.weights for file in files),
        repackable=_repackable(tensors.values()),
        parameters=float(sum(math.prod(tensor.dimensions) for tensor in tensors.values())),
        exact=True,
        tied=(embedding.kind, embedding.size) if embedding else None,
    )


def from_config(source: str, config: Mapping[str, Any]) -> tuple[Shape, float | None]:
    """The shape, and bits a weight where the published files are quantized already (MLX).

    Raises ShapeError.
    """
    whole, config = config, config.get("text_config", config)

    def number(key: str, default: int | None = None) -> int:
        value = config.get(key) or default
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ShapeError(
                f"{source}: {key} is {value!r}, expected a positive integer; is it the config.json "
                "of a language model?"
            )
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    head_dim = number("head_dim", hidden // heads)
    quantization = whole.get("quantization") or {}
    bits = None
    if quantization:
        # MLX: a scale and a bias of 16 bits for each group of weights.
        bits = quantization.get("bits", 8) + 32 / quantization.get("group_size", 64)
    shape = Shape(
        architecture=str(config.get("model_type", "llama")),
        layers=number("num_hidden_layers"),
        hidden=hidden,
        feed_forward=number("intermediate_size"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        key_length=head_dim,
        value_length=head_dim,
        vocabulary=number("vocab_size"),
        context=number("max_position_embeddings"),
        merges=2 * number("vocab_size"),  # Tekken's relation; config.json does not say
        tied=bool(config.get("tie_word_embeddings", False)),
    )
    return shape, bits


def _length(header: Header, key: str) -> int:
    value = header.values.get(key)
    return value.length if isinstance(value, Array) else 0


def _quantization(header: Header, tensors: Iterable[Tensor]) -> str:
    """By the file's own word, else the type that most bytes are in."""
    named = FILE_TYPES.get(header.values.get("general.file_type"))  # type: ignore[arg-type]
    if named:
        return named
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.size
    return max(sizes, key=lambda kind: sizes[kind])


def _repackable(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Of an embedding rows are only looked up."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        matrix = len(tensor.dimensions) == MATRIX and tensor.dimensions[1] % ROWS_TOGETHER == 0
        if matrix and tensor.name != EMBEDDING:
            sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.size
    return sizes
