"""MLX on the processor: unquantized, and quantized by mlx_lm as the published 8-bit files are."""

import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.convert import convert
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

from .measure import Step, main

GROUP = 64  # weights that share a scale, as in the published files


def variants(request: dict[str, Any]) -> dict[str, Callable[[], Callable[[], Step]]]:
    mx.set_default_device(mx.cpu)
    return {
        name: partial(_load, Path(request["model"]), bits, dtype)
        for name, bits, dtype in (
            ("8-bit, float32", 8, "float32"),
            ("8-bit, bfloat16", 8, "bfloat16"),
            ("4-bit, float32", 4, "float32"),
            ("3-bit, float32", 3, "float32"),
            ("float32", 0, "float32"),
        )
    }


def _load(source: Path, bits: int, dtype: str) -> Callable[[], Step]:
    target = source.with_name("mlx")
    with redirect_stdout(sys.stderr):
        convert(
            str(source),
            mlx_path=str(target),
            quantize=bits > 0,
            q_bits=bits or None,
            q_group_size=GROUP,
            dtype=dtype,
        )
        model = load(str(target))[0]
    mx.eval(model.parameters())
    shutil.rmtree(target)

    def start() -> Step:
        cache = make_prompt_cache(model)

        def step(tokens: list[int]) -> int:
            logits = model(mx.array([tokens]), cache=cache)
            return int(mx.argmax(logits[0, -1]).item())

        return step

    return start


if __name__ == "__main__":
    main(variants)
