"""transformers on torch: the two number formats that its processors' kernels compute in."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from .measure import Step, main


def variants(request: dict[str, Any]) -> dict[str, Callable[[], Callable[[], Step]]]:
    torch.set_num_threads(request["threads"])
    return {
        name: partial(_load, request["model"], getattr(torch, name))
        for name in ("bfloat16", "float32")
    }


def _load(folder: str, dtype: torch.dtype) -> Callable[[], Step]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.eval()

    def start() -> Step:
        cache = DynamicCache(config=model.config)

        def step(tokens: list[int]) -> int:
            with torch.inference_mode():
                done = model(
                    input_ids=torch.tensor([tokens]),
                    cache=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            return int(done.logits[0, -1].argmax())

        return step

    return start


if __name__ == "__main__":
    main(variants)
