"""MLX's quantized safetensors to a GGUF of type F16 or Q8_0, in little memory.

Every tensor is unpacked, put into llama.cpp's order and packed again a few rows at a time, so that
the memory needed depends on no size of the model. What would make a file that loads and answers
nonsense (a tensor too many, a missing template) is refused before anything is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quant_shape_to_byte_shape, quantize

from vistrald.conversion import destination as files
from vistrald.conversion.errors import ConversionError
from vistrald.conversion.model_config import ModelConfig, read_config
from vistrald.conversion.safetensors import read_folder
from vistrald.conversion.vocabulary import Vocabulary, read_vocabulary
from vistrald.conversion.weights import Weight, map_weights

Kind = Literal["F16", "Q8_0"]

FILE_TYPES = {"F16": LlamaFileType.MOSTLY_F16, "Q8_0": LlamaFileType.MOSTLY_Q8_0}
METADATA_BYTES = 64 * 2**20  # room for the vocabulary; Tekken's 131072 tokens take 9 MB
BLOCK = 32  # values of a row that share a scale in Q8_0


@dataclass(frozen=True)
class Plan:
    """A model that can be converted, everything checked."""

    config: ModelConfig
    weights: list[Weight]
    vocabulary: Vocabulary
    kind: Kind

    @property
    def tensor_bytes(self) -> int:
        return sum(_layout(weight, self.kind)[1] for weight in self.weights)

    @property
    def needed_bytes(self) -> int:
        """On disk, some more than the file will have."""
        return self.tensor_bytes + METADATA_BYTES


def plan(source: Path, kind: Kind, template: Path | None = None) -> Plan:
    """Reads everything but the weights. Raises ConversionError."""
    config = read_config(source)
    weights = map_weights(config, read_folder(source))
    if kind == "Q8_0":
        for weight in weights:
            if len(weight.shape) > 1 and weight.shape[-1] % BLOCK:
                raise ConversionError(
                    f"{weight.values.file}: tensor {weight.values.name} has rows of "
                    f"{weight.shape[-1]} values, Q8_0 takes multiples of {BLOCK}; use --type F16"
                )
    return Plan(config, weights, read_vocabulary(source, config.vocab_size, template), kind)


def convert(
    planned: Plan,
    destination: Path,
    name: str,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the file; `progress` gets the bytes of tensors written since the last call.

    Begins anew after an interruption. Raises ConversionError.
    """
    files.check(destination, planned.needed_bytes)
    with files.whole(destination) as part:
        # The writer warns of each tensor name it is told of twice, and so on; none of it applies.
        logging.getLogger("gguf").setLevel(logging.ERROR)
        writer = GGUFWriter(part, str(planned.config.architecture))
        try:
            _write(writer, planned, name, progress)
        except OSError as error:
            raise ConversionError(f"{part}: {error.strerror or error}; nothing was kept") from None
        finally:
            writer.close()


def _write(writer: GGUFWriter, planned: Plan, name: str, progress: Callable[[int], None]) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[planned.kind])
    writer.add_quantization_version(2)
    _add_shape(writer, planned.config)
    _add_vocabulary(writer, planned.vocabulary)
    for weight in planned.weights:
        type_, size = _layout(weight, planned.kind)
        stored = quant_shape_to_byte_shape(weight.shape, type_)
        writer.add_tensor_info(weight.name, stored, np.dtype(np.uint8), size, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None  # noqa: S101 - opened above
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for weight in planned.weights:
        # The writer itself takes whole tensors only: 1.3 GB for the 24B model's vocabulary.
        type_, size = _layout(weight, planned.kind)
        for values in weight.chunks():
            packed = quantize(values, type_)
            packed.tofile(out)
            progress(packed.nbytes)
        writer.write_padding(out, size)


def _layout(weight: Weight, kind: Kind) -> tuple[GGMLQuantizationType, int]:
    """Type and bytes in the GGUF: norms stay in float32."""
    name = "F32" if len(weight.shape) == 1 else kind
    type_ = GGMLQuantizationType[name]
    return type_, int(np.prod(quant_shape_to_byte_shape(weight.shape, type_)))


def _add_shape(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    # Without these llama.cpp takes hidden / heads, which is 160 instead of 128 for the 24B model.
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("tekken")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    setters = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, token in vocabulary.special.items():
        setters[name](token)
    writer.add_add_bos_token(True)
    writer.add_chat_template(vocabulary.template)
