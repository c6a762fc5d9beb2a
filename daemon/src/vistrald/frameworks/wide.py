"""One layer of exactly the 24B model's matrices, with random weights, as a GGUF in F16 or IQ4_XS.

A small model's matrices are so small that a framework's cost for each operation hides what its
matrix product costs. Vocabulary and tokenizer are the beginning of the small model's.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType

from vistrald.sizing import catalogue

SEED = 1
DEVIATION = 0.02  # of the weights, as in trained models
TOKENS = 4096  # of the vocabulary, so that the output matrix is small beside the layer
CONTEXT = 4096
POOL = 1 << 22  # random numbers that are repeated: no product's time depends on them
# A block of IQ4_XS: 256 weights, its scale in the first two of 136 bytes. Six-bit scales around
# zero times a table of -127 … 113 make this unit worth weights of the same deviation.
BLOCK, BLOCK_BYTES = 256, 136
BLOCK_SCALE = DEVIATION / 1250


def write(path: Path, tokenizer_of: Path, *, iq4_xs: bool = False) -> None:
    """Writes a GGUF whose tokenizer is cut from another one's."""
    shape = catalogue.vistral()
    kv_heads = int(shape.kv_heads)
    reader = GGUFReader(tokenizer_of)
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()[:TOKENS]
    known = set(tokens)
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_IQ4_XS if iq4_xs else LlamaFileType.MOSTLY_F16)
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(shape.key_length)
    writer.add_value_length(shape.key_length)
    writer.add_rope_dimension_count(shape.key_length)
    writer.add_rope_freq_base(1e8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(reader.fields["tokenizer.ggml.pre"].contents())
    writer.add_token_list(tokens)
    writer.add_token_types(reader.fields["tokenizer.ggml.token_type"].contents()[:TOKENS])
    writer.add_token_merges([each for each in merges if each.replace(" ", "") in known])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)

    pool = _blocks() if iq4_xs else _floats()
    queries, keys = shape.heads * shape.key_length, kv_heads * shape.key_length
    for name, rows, columns in (
        ("token_embd", TOKENS, shape.hidden),
        ("blk.0.attn_q", queries, shape.hidden),
        ("blk.0.attn_k", keys, shape.hidden),
        ("blk.0.attn_v", keys, shape.hidden),
        ("blk.0.attn_output", shape.hidden, queries),
        ("blk.0.ffn_gate", shape.feed_forward, shape.hidden),
        ("blk.0.ffn_up", shape.feed_forward, shape.hidden),
        ("blk.0.ffn_down", shape.hidden, shape.feed_forward),
    ):
        if iq4_xs:
            data = np.resize(pool, (rows, columns // BLOCK * BLOCK_BYTES))
            type_ = GGMLQuantizationType.IQ4_XS
            writer.add_tensor(f"{name}.weight", data, raw_dtype=type_)
        else:
            writer.add_tensor(f"{name}.weight", np.resize(pool, (rows, columns)))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(shape.hidden, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _floats() -> np.ndarray[Any, Any]:
    pool = np.random.default_rng(SEED).standard_normal(POOL, dtype=np.float32)
    return (pool * DEVIATION).astype(np.float16)


def _blocks() -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(SEED)
    pool = generator.integers(0, 256, (POOL // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    pool[:, :2] = np.array([BLOCK_SCALE], dtype="<f2").view(np.uint8)
    return pool.reshape(-1)
