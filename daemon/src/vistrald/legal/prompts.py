"""A legal question as messages, laid out so that prefixes repeat from question to question."""

from collections.abc import Iterable
from importlib.resources import files
from string import Template

from vistrald.engine.template import Message

VERSION = "v1"  # of the texts; an answer's prompt can be traced by it


def legal_messages(
    question: str, context: str | None = None, history: Iterable[Message] = ()
) -> list[Message]:
    """Fixed text, then the documents, then the history, the question last.

    The order keeps the longest common prefix between questions about the same documents. History
    before the first question (a greeting) is left out: templates want a user to begin.
    """
    system = _text("system").rstrip("\n")
    if context and context.strip():
        system += Template(_text("documents").rstrip("\n")).substitute(documents=context.strip())
    turns = _alternating([*history, Message("user", question)])
    return [Message("system", system), *turns]


def _alternating(messages: Iterable[Message]) -> list[Message]:
    """Joins neighbours of the same role: most templates refuse two questions in a row."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1].role == message.role:
            turns[-1] = Message(message.role, f"{turns[-1].content}\n\n{message.content}")
        elif turns or message.role == "user":
            turns.append(message)
    return turns


def _text(name: str) -> str:
    return files(__package__).joinpath(f"{name}_{VERSION}.txt").read_text(encoding="utf-8")
