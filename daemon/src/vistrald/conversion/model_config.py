"""config.json of an MLX model: what the conversion needs of it, and what it refuses."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from vistrald.conversion.errors import ConversionError

ARCHITECTURES = {"MistralForCausalLM": "llama"}  # theirs -> GGUF's


class Quantization(BaseModel):
    """How a module's weights are packed: bits of a value, columns that share a scale."""

    bits: Literal[4, 8]
    group_size: Literal[16, 32, 64, 128]
    mode: Literal["affine"] = "affine"


class ModelConfig(BaseModel):
    """Of a model whose every layer is what llama.cpp computes for the `llama` architecture."""

    architectures: list[str]
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: PositiveFloat
    rope_theta: PositiveFloat
    rope_type: Literal["default"] = "default"
    # None: whether the files have lm_head says it.
    tie_word_embeddings: bool | None = None
    # Left out by older exports; another value would need other computations.
    hidden_act: Literal["silu"] = "silu"
    sliding_window: None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    rope_traditional: Literal[False] = False
    # The default and, by module name, exceptions; False: left as it was.
    quantization: Quantization | None = None
    exceptions: dict[str, Quantization | bool] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, config: Any) -> Any:
        """Brings the forms that different versions of transformers and mlx-lm write into one."""
        if not isinstance(config, dict):
            return config
        config = dict(config)
        # transformers 5 has rope_parameters; before, rope_theta and rope_scaling stood apart.
        rope = config.get("rope_parameters") or config.get("rope_scaling")
        rope = dict(rope) if isinstance(rope, dict) else {}
        if "rope_theta" in rope:
            config["rope_theta"] = rope["rope_theta"]
        if kind := rope.get("rope_type") or rope.get("type"):
            config["rope_type"] = kind
        heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
        if not config.get("head_dim") and type(heads) is type(hidden) is int and heads > 0:
            config["head_dim"] = hidden // heads
        if not config.get("num_key_value_heads"):
            config["num_key_value_heads"] = heads
        packed = config.get("quantization")
        if isinstance(packed, dict):
            names = {key for key in packed if "." in key or key == "lm_head"}
            config["exceptions"] = {key: packed[key] for key in names}
            config["quantization"] = {key: packed[key] for key in packed.keys() - names}
        return config

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}, or head_dim = "
                f"{self.head_dim} is odd"
            )
        return self

    @property
    def architecture(self) -> str | None:
        """GGUF's name for it; None if it is none that can be converted."""
        return next((ARCHITECTURES[a] for a in self.architectures if a in ARCHITECTURES), None)

    def packing(self, module: str) -> Quantization | None:
        """How the module is packed if it is; None: it must not be."""
        exception = self.exceptions.get(module, True)
        if isinstance(exception, Quantization):
            return exception
        return self.quantization if exception else None


def read_config(folder: Path) -> ModelConfig:
    """Raises ConversionError, naming every key that does not fit, with its value."""
    file = folder / "config.json"
    try:
        config = ModelConfig.model_validate(json.loads(file.read_bytes()))
    except OSError as error:
        raise ConversionError(
            f"{file}: {error.strerror}; give the folder with all files of the MLX repository"
        ) from None
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'the file'} = {str(each['input'])[:80]}: "
            f"{each['msg']}"
            for each in error.errors()
        )
        raise ConversionError(
            f"{file}: {wrong}. Such a model cannot be converted: use a published GGUF of it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{file} is not valid JSON ({error}); fetch it again") from None
    if config.architecture is None:
        raise ConversionError(
            f"{file}: architectures = {config.architectures}, {', '.join(ARCHITECTURES)} can be "
            "converted; use llama.cpp's convert_hf_to_gguf.py and the unquantized model for others"
        )
    return config
