"""How each framework is measured: `python -m trials.with_…` reads a request, prints what it found.

Everybody gets the same token ids and chooses the most likely token, so that the answers can be
compared too.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

# Computes these tokens at the sequence's end and returns the most likely next one.
Step = Callable[[list[int]], int]


def main(variants: Callable[[dict[str, Any]], dict[str, Callable[[], Callable[[], Step]]]]) -> None:
    """Loads and measures the variants that the request names, one after the other.

    A variant's loader returns what starts an empty sequence. The request is JSON on standard input:
    model, prompt (token ids), answer_tokens, seconds (for each variant), variants, threads.
    """
    request = json.load(sys.stdin)
    process_bytes = _memory("VmRSS")  # the framework is imported by now, nothing is loaded
    loaders = variants(request)
    found = {}
    for name in request["variants"]:
        began = time.monotonic()
        start = loaders[name]()
        load_seconds = time.monotonic() - began
        found[name] = {"load_seconds": load_seconds} | _measure(start, request)
    report = {"variants": found, "process_bytes": process_bytes, "peak_bytes": _memory("VmHWM")}
    print(json.dumps(report))  # noqa: T201


def _measure(start: Callable[[], Step], request: dict[str, Any]) -> dict[str, Any]:
    prompt = request["prompt"]
    step = start()
    _timed(step, prompt[:1])  # allocates, compiles, reads pages
    # The best of three: one that other work delayed would cut the prompt short.
    one = min(_timed(step, prompt[1:2])[0] for _ in range(3))
    # A framework that does not batch takes as long for each token of the prompt.
    known = prompt[: max(4, int(request["seconds"] / 2 / one))]
    step = start()
    prefill_seconds, token = _timed(step, known)
    answer = [token]
    times: list[float] = []
    began, processor_began = time.monotonic(), time.process_time()
    while len(answer) < request["answer_tokens"] and sum(times) < request["seconds"] / 2:
        seconds, token = _timed(step, [token])
        answer.append(token)
        times.append(seconds)
    cores = (time.process_time() - processor_began) / (time.monotonic() - began)
    return {
        "prefill": len(known) / prefill_seconds,
        "decode": 1 / median(times),
        "cores": cores,  # at work while decoding
        "prompt_tokens": len(known),
        "answer": answer if len(known) == len(prompt) else [],
    }


def _timed(step: Step, tokens: list[int]) -> tuple[float, int]:
    began = time.monotonic()
    token = step(tokens)
    return time.monotonic() - began, token


def _memory(field: str) -> int:
    """Bytes of this process by /proc; getrusage would count the parent's before exec."""
    found = re.search(
        rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
    )
    return int(found[1]) * 1024 if found else 0
