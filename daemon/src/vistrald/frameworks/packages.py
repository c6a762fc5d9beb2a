"""What is installed for a trial, pinned: the newest release of each that was tried, November 2026.

A figure in a report belongs to these versions. To try others, change them here and run the command
again.
"""

from dataclasses import dataclass

# Debian 12's pip 23.0 downloads whole wheels to learn their dependencies; since 23.2 it reads the
# index's metadata files, so that sizes are known before anything is fetched.
PIP = "pip==26.3"


@dataclass(frozen=True)
class Candidate:
    """A framework; `module` is its trial in trials/, None: nothing is loaded with it."""

    key: str
    title: str
    requirements: tuple[str, ...]
    module: str | None
    variants: tuple[str, ...]


LLAMA = Candidate("llama.cpp", "llama.cpp (GGUF)", (), "with_llama", ())
TRANSFORMERS = Candidate(
    "transformers",
    "transformers + torch",
    # torch: the newest with a build for CPU only; PyPI's own wheel for Linux is the CUDA build.
    ("torch==2.13.0", "transformers==5.24.0"),
    "with_torch",
    ("bfloat16", "float32"),
)
# Its wheels on PyPI are CUDA builds and require the CUDA build of torch. The one format of its that
# comes near to the cap is computed in needs.py; nothing would be learnt from a load.
VLLM = Candidate("vllm", "vLLM", ("vllm==0.33.0",), None, ())
MLX = Candidate(
    "mlx",
    "MLX",
    # Plain `mlx` has no libmlx.so on Linux and fails at import: the extra brings mlx-cpu. mlx-lm
    # takes any transformers above 5; that of the other trial, so that both are the same.
    ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2", "transformers==5.24.0"),
    "with_mlx",
    ("8-bit, float32", "8-bit, bfloat16", "4-bit, float32", "float32"),
)
CANDIDATES = (LLAMA, TRANSFORMERS, VLLM, MLX)
