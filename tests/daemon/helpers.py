"""Small things that several tests need."""

import json
import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


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
