"""Structured log lines on standard error: `level logger event key=value …`, one per event.

Prompts and answers are confidential: no line ever carries them.
"""

import json
import logging
import sys
from typing import Any


def configure() -> None:
    # journald stamps the time; a second stamp would only widen the line.
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s"
    )


def line(event: str, **fields: Any) -> str:
    """`event key=value …`; strings with blanks or quotes are written as JSON strings."""
    return " ".join([event, *(f"{key}={_value(value)}" for key, value in fields.items())])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text, ensure_ascii=False)
