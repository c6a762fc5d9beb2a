"""One GGUF's weights in the form that each framework reads, so that all of them compute the same.

Every tensor is dequantized once; what is written are a Hugging Face folder (float16 safetensors,
config, tokenizer) and a GGUF in Q8_0.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize, quantize

from vistrald.conversion.weights import LAYER_MODULES, MODULES

ARCHITECTURE = "llama"
CONTROL_TOKEN = 3  # enum llama_token_type
# What the reader adds for the header's own numbers, and what the writer makes anew.
NOT_COPIED = ("GGUF.", "general.architecture", "general.file_type")
Q8_0_BLOCK = 32  # weights in a row that share a scale

NOT_WEIGHTS = {"rope_freqs.weight"}  # computed from the configuration by everybody else


class WeightsError(Exception):
    """Why this GGUF cannot be given to the other frameworks."""


@dataclass(frozen=True)
class Weights:
    parameters: int
    multiplied: int  # weights that a token is multiplied with: an embedding is only looked up
    file_type: str  # the given GGUF's


def inspect(model: Path) -> Weights:
    """Counts a GGUF's weights. Raises WeightsError if it is not a dense llama."""
    reader = _read(model)
    sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    matrices = sum(sizes[tensor.name] for tensor in reader.tensors if len(tensor.shape) > 1)
    looked_up = sizes["token_embd.weight"] if "output.weight" in sizes else 0
    file_type = _field(reader, "general.file_type", -1)
    known = {int(each): each.name for each in LlamaFileType}
    return Weights(
        parameters=sum(sizes.values()),
        multiplied=matrices - looked_up,
        file_type=known.get(file_type, "?").removeprefix("MOSTLY_"),
    )


def bytes_needed(parameters: int) -> int:
    """Disk for both forms: 16 and 8.5 bits a weight."""
    return math.ceil(parameters * (16 + 8.5) / 8)


def write_hugging_face(model: Path, folder: Path) -> None:
    """model.safetensors, config.json and the tokenizer's files. Raises WeightsError."""
    reader = _read(model)
    folder.mkdir(parents=True)
    config = _config(reader)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(reader)))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _field(reader, "tokenizer.ggml.tokens")[config["eos_token_id"]],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    with (folder / "model.safetensors").open("wb") as file:
        _write_safetensors(file, list(_weights(reader)), config)


def write_q8_0(model: Path, path: Path) -> None:
    """The same weights in Q8_0. Raises WeightsError."""
    reader = _read(model)
    writer = GGUFWriter(path, ARCHITECTURE)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    for name, field in reader.fields.items():
        if not name.startswith(NOT_COPIED):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim > 1 and values.shape[-1] % Q8_0_BLOCK == 0:
            type_ = GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor.name, quantize(values, type_), raw_dtype=type_)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(model: Path) -> GGUFReader:
    try:
        reader = GGUFReader(model)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{model} is not a GGUF that can be read: {error}") from None
    architecture = _field(reader, "general.architecture", "none")
    if architecture != ARCHITECTURE:
        raise WeightsError(f"{model}: general.architecture is {architecture}, only llama is tried")
    tokenizer = _field(reader, "tokenizer.ggml.model", "none")
    if tokenizer != "gpt2":
        raise WeightsError(f"{model}: tokenizer.ggml.model is {tokenizer}, only gpt2 is tried")
    unknown = [tensor.name for tensor in reader.tensors if not _hugging_face_name(tensor.name)]
    if unknown:
        raise WeightsError(f"{model}: {unknown[0]} has no counterpart in a dense llama model")
    return reader


def _field(reader: GGUFReader, name: str, default: Any = None) -> Any:
    field = reader.get_field(name)
    if field is not None:
        return field.contents()
    if default is None:
        raise WeightsError(f"the GGUF has no {name}")
    return default


def _config(reader: GGUFReader) -> dict[str, Any]:
    heads = _field(reader, "llama.attention.head_count")
    hidden = _field(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "dtype": "float16",
        "hidden_size": hidden,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv", heads),
        "head_dim": _field(reader, "llama.attention.key_length", hidden // heads),
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": _field(reader, "llama.rope.freq_base", 10000.0),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id", 0),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }


def _tokenizer(reader: GGUFReader) -> dict[str, Any]:
    """A byte-level BPE that splits text as GPT-2 does, whatever the model's own way is.

    The trials exchange token ids; the frameworks only insist on loading a tokenizer.
    """
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    types: list[int] = _field(reader, "tokenizer.ggml.token_type")
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    added = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "added_tokens": [
            {"id": at, "content": tokens[at], "special": True, **added}
            for at, type_ in enumerate(types)
            if type_ == CONTROL_TOKEN
        ],
        "model": {
            "type": "BPE",
            "vocab": {token: at for at, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in _field(reader, "tokenizer.ggml.merges")],
        },
    }


def _weights(reader: GGUFReader) -> Iterator[tuple[str, ReaderTensor]]:
    for tensor in reader.tensors:
        if tensor.name not in NOT_WEIGHTS:
            yield _hugging_face_name(tensor.name), tensor


def _hugging_face_name(name: str) -> str:
    """Empty for a tensor that a dense llama does not have."""
    if name in NOT_WEIGHTS:
        return name
    if name.startswith("blk."):
        _, layer, part, *kind = name.split(".")
        if kind == ["weight"] and part in LAYER_MODULES:
            return f"model.layers.{layer}.{LAYER_MODULES[part]}.weight"
    module = MODULES.get(name.removesuffix(".weight"))
    return f"{module}.weight" if module and name.endswith(".weight") else ""


def _write_safetensors(
    file: BinaryIO, weights: list[tuple[str, ReaderTensor]], config: dict[str, Any]
) -> None:
    """The format is a length, a JSON header, and the data one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in weights:
        begin, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, tensor in weights:
        values = dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("q_proj.weight"):
            values = _unpermuted(values, config["num_attention_heads"])
        elif name.endswith("k_proj.weight"):
            values = _unpermuted(values, config["num_key_value_heads"])
        file.write(values.astype("<f2").tobytes())


def _unpermuted(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """A GGUF has the two halves of a head's rows interleaved, Hugging Face one after the other.

    The inverse of convert_hf_to_gguf.py's LlamaModel.permute().
    """
    pairs = rows.shape[0] // heads // 2
    return rows.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(rows.shape)
