"""llama.cpp through the daemon's own engine: the given file and the same weights in Q8_0."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vistrald.engine import llama
from vistrald.engine.llama import Context, Entry, Model, Sampler
from vistrald.engine.sampling import Sampling
from vistrald.settings import EngineSection

from .measure import Step, main

SETTINGS = EngineSection(context_tokens=512, parallel_sequences=1, draft_tokens=0)
SLOT = 0


def variants(request: dict[str, Any]) -> dict[str, Callable[[], Callable[[], Step]]]:
    llama.load_backend()
    return {
        name: partial(_load, Path(path), request["threads"])
        for name, path in request["models"].items()
    }


def _load(path: Path, threads: int) -> Callable[[], Step]:
    model = Model(path, SETTINGS)
    context = Context(model, SETTINGS, threads)
    sampler = Sampler(model.vocabulary, Sampling(max_tokens=1))

    def start() -> Step:
        context.forget(SLOT)
        position = 0

        def step(tokens: list[int]) -> int:
            nonlocal position
            last = len(tokens) - 1
            context.decode(
                [Entry(token, position + at, SLOT, at == last) for at, token in enumerate(tokens)]
            )
            position += len(tokens)
            return sampler.sample(context, last)

        return step

    return start


if __name__ == "__main__":
    main(variants)
