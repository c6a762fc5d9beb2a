"""Small things that several tests need."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vistrald.engine import llama
from vistrald.engine.disk_cache import DiskCache
from vistrald.engine.engine import Engine
from vistrald.settings import EngineSection


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@contextmanager
def running(
    model: llama.Model, settings: EngineSection, disk: DiskCache | None = None
) -> Iterator[Engine]:
    """An engine at work on a context of its own; at the end its thread must have ended."""
    context = llama.Context(model, settings, threads=1)
    engine = Engine(model, context, settings, disk=disk)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    yield engine
    engine.stop()
    thread.join(timeout=30)
    assert not thread.is_alive()
    context.close()
    if disk:
        disk.wait()


def events(text: str) -> list[tuple[str, Any]]:
    """Server-sent events as (name, data); comments are left out, [DONE] is kept as text."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = "message", None
        for line in block.split("\n"):
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value if value == "[DONE]" else json.loads(value)
        if data is not None:
            found.append((name, data))
    return found
