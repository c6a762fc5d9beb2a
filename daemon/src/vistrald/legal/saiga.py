"""Prompt strings that the application built for Saiga, read back as messages."""

import re
from typing import Literal, cast

from vistrald.engine.template import Message

ROLES = {"system": "system", "user": "user", "bot": "assistant"}
# <s><system>…</system><user>…</user><bot>
TAGGED = re.compile(r"\s*<(system|user|bot)>(.*?)</\1>", re.DOTALL)
TAGGED_END = re.compile(r"\s*(<bot>\s*)?")
# <s>system\n…</s><s>user\n…</s><s>bot\n
TURN = re.compile(r"\s*<s>\s*(system|user|bot)\n(.*?)</s>", re.DOTALL)
TURN_END = re.compile(r"\s*(<s>\s*bot\s*)?")


def parse_saiga_prompt(prompt: str) -> list[Message] | None:
    """The messages of a prompt in either of Saiga's formats; None if it is in neither."""
    return _parse(prompt.strip().removeprefix("<s>"), TAGGED, TAGGED_END) or _parse(
        prompt, TURN, TURN_END
    )


def _parse(prompt: str, turn: re.Pattern[str], end: re.Pattern[str]) -> list[Message] | None:
    messages: list[Message] = []
    position = 0
    while match := turn.match(prompt, position):
        content = match[2].strip()
        if content:
            role = cast(Literal["system", "user", "assistant"], ROLES[match[1]])
            messages.append(Message(role, content))
        position = match.end()
    if not messages or not end.fullmatch(prompt, position):
        return None
    return messages
