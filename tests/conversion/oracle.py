"""Runs in the venv of requirements.txt: `make FOLDER` and `logits MODEL TOKENS RESULT`.

`make` writes a small model of the Mistral architecture with random weights, and has mlx-lm quantize
it; `logits` computes the logits of sequences of tokens in float32.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm import convert
from mlx_lm.models import llama
from mlx_lm.utils import load_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
    "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
]  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}[SYSTEM_PROMPT]{{ message['content'] }}[/SYSTEM_PROMPT]"
    "{% elif message['role'] == 'user' %}[INST]{{ message['content'] }}[/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,  # as in the real model, not hidden_size / num_attention_heads
    "vocab_size": 2048,  # more than the tokenizer has: the rest is padded
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e8,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(folder: Path) -> None:
    source = folder / "bf16"
    source.mkdir()
    _tokenizer().save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "chat_template": TEMPLATE,
            }
        )
    )
    (source / "config.json").write_text(json.dumps(CONFIG))
    mx.random.seed(2)
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    weights = {
        name: _random(name, value.shape).astype(mx.bfloat16)
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(source / "model.safetensors"), weights, metadata={"format": "pt"})
    for bits, group in ((8, 64), (4, 32)):
        convert(
            str(source), str(folder / f"q{bits}"), quantize=True, q_bits=bits, q_group_size=group
        )


def _random(name: str, shape: tuple[int, ...]) -> mx.array:
    """Of about the size that trained weights have: each layer adds a part to what came before."""
    if len(shape) == 1:
        return 1 + 0.1 * mx.random.normal(shape)
    sizes = {"embed_tokens": 16.0, "lm_head": 3.0, "o_proj": 0.4, "down_proj": 0.4}
    size = next((size for part, size in sizes.items() if part in name), 1.0)
    return size * mx.random.normal(shape) / shape[-1] ** 0.5


def _tokenizer() -> Tokenizer:
    """A byte-level BPE trained on the benchmark's texts, with Tekken's pattern and V7's tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TEKKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [(ROOT / f"bench/texts/{language}.toml").read_text() for language in ("ru", "en")]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def logits(folder: Path, tokens: Path, result: Path) -> None:
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    sequences = mx.array(json.loads(tokens.read_text()))
    np.save(result, np.array(model(sequences)))


def encode(folder: Path, texts: Path, result: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [
        tokenizer.encode(text, add_special_tokens=False).ids
        for text in json.loads(texts.read_text())
    ]
    result.write_text(json.dumps(ids))


if __name__ == "__main__":
    {"make": make, "logits": logits, "encode": encode}[sys.argv[1]](*map(Path, sys.argv[2:]))
