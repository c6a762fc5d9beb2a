"""What the 24B model takes in memory, for every format that a framework can load it in."""

from dataclasses import dataclass

from vistrald.sizing import catalogue
from vistrald.sizing.account import KV_BYTES
from vistrald.sizing.shape import Shape

CAP = 14_000_000_000  # bytes, the product's
CONTEXT = 4096  # tokens, the daemon's default

# The processes without weights and cache, bytes. Torch and MLX: resident after the import, as
# measured with the pinned versions, and the step's own arrays; llama.cpp: 24B IQ4_XS measured at
# 13.64e9 resident, less its weights and its cache; vLLM starts two processes that import torch, and
# a server.
BESIDE_WEIGHTS = {
    "llama.cpp": 120_000_000,
    "transformers": 450_000_000,
    "vllm": 1_500_000_000,
    "mlx": 300_000_000,
}


@dataclass(frozen=True)
class Format:
    """Bits a weight, with the scales that belong to it, of the layers and of the two others."""

    framework: str
    name: str
    linear_bits: float
    embedding_bits: float  # of the input embedding and the output matrix
    source: str


# Bits of a GGUF follow from the files of the base family on its model card: 8 * bytes / 23.57e9.
FORMATS = (
    Format("llama.cpp", "BF16", 16, 16, "llama.cpp, ggml-common.h"),
    Format("llama.cpp", "Q8_0", 8.5, 8.5, "llama.cpp, block_q8_0: 34 bytes for 32 weights"),
    Format("llama.cpp", "Q4_K_M", 4.86, 4.86, "14.33 GB on the model card"),
    Format("llama.cpp", "IQ4_XS", 4.36, 4.36, "12.85 GB on the model card"),
    Format("llama.cpp", "Q3_K_M", 3.89, 3.89, "11.5 GB on the model card"),
    Format("transformers", "bfloat16", 16, 16, "the published weights"),
    Format("transformers", "float32", 32, 32, "processors without bfloat16 instructions"),
    # torchao's and bitsandbytes' linear layers; lm_head is skipped by default, and embeddings too.
    Format("transformers", "int8 (torchao)", 8, 16, "torchao, Int8WeightOnlyConfig"),
    Format("transformers", "NF4 (bitsandbytes)", 4.127, 16, "QLoRA, 3: double quantization"),
    Format("vllm", "bfloat16", 16, 16, "the published weights"),
    Format("vllm", "W8A8 int8", 8, 16, "llm-compressor: lm_head is ignored"),
    # Four bits, and for each group of 128 a scale of 16 and a zero of 4.
    Format("vllm", "AWQ int4, g128", 4.156, 16, "AutoAWQ: lm_head is not converted"),
    # Scale and bias of 16 bits each for a group of 64; embedding and output are quantized too.
    Format("mlx", "bfloat16", 16, 16, "the published weights"),
    Format("mlx", "8-bit", 8.5, 8.5, "mlx.nn.quantize, affine, group 64"),
    Format("mlx", "4-bit", 4.5, 4.5, "mlx.nn.quantize, affine, group 64"),
    Format("mlx", "3-bit", 3.5, 3.5, "mlx.nn.quantize, affine, group 64"),
)  # fmt: skip


@dataclass(frozen=True)
class Need:
    """Bytes of RAM; `fits` is the verdict against the cap."""

    format: Format
    weights: int
    kv: int
    beside: int
    cap: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.beside

    @property
    def fits(self) -> bool:
        return self.total <= self.cap


def needs(framework: str, cap: int = CAP, context: int = CONTEXT) -> list[Need]:
    """For each format of the framework, the largest first."""
    shape = catalogue.vistral()
    found = [
        Need(
            format=each,
            weights=round(_weight_bits(each, shape) / 8),
            kv=round(context * shape.kv_elements * KV_BYTES["f16"]),
            beside=BESIDE_WEIGHTS[framework],
            cap=cap,
        )
        for each in FORMATS
        if each.framework == framework
    ]
    return sorted(found, key=lambda need: -need.total)


def best_fit(found: list[Need]) -> Need | None:
    """The largest format that fits: more bits, more quality."""
    return next((need for need in found if need.fits), None)


def _weight_bits(each: Format, shape: Shape) -> float:
    norms = shape.parameters - shape.linear - 2 * shape.embedding
    return shape.linear * each.linear_bits + 2 * shape.embedding * each.embedding_bits + norms * 16
