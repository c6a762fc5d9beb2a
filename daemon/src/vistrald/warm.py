"""`vistrald warm`: has a running daemon compute the prefixes of a corpus and keep them on disk.

It holds no state of its own: what is on disk already is answered at once, so that a second run goes
on where the first was cut off.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from vistrald.ask import AskError, describe

CONNECT_SECONDS = 10
# The daemon computes while nobody else asks, which may take hours.
ANSWER_SECONDS = 24 * 3600
# 503 says when to come again (Retry-After): a restart of a large model takes minutes.
RETRIES = Retry(
    total=60, connect=3, backoff_factor=0.5, status_forcelist=[503], allowed_methods=None
)


class Entry(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    id: str = Field(min_length=1, max_length=200, description="for people: what it is")
    context: str | None = Field(default=None, description="the documents, as /api/v1/prompt has it")
    messages: list[dict[str, Any]] | None = Field(default=None, description="instead of context")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if bool(self.context and self.context.strip()) == bool(self.messages):
            raise ValueError("either context or messages, and not empty")
        return self

    def body(self) -> dict[str, Any]:
        return self.model_dump(exclude={"id"}, exclude_none=True)


# What every prompt with documents begins with: for documents that are not in the file.
INSTRUCTIONS = Entry.model_construct(id="instructions", context=None, messages=None)


class CorpusError(Exception):
    """What is wrong with the file, one line for each problem."""


class Warmer:
    """Progress is told as tokens; `run` may be repeated."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1/prefixes"
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(max_retries=RETRIES))
        self._session.mount("https://", HTTPAdapter(max_retries=RETRIES))

    def plan(self, entries: Iterable[Entry]) -> dict[str, Any]:
        """What it would take: entries, known, tokens, seconds (None: no rate), bytes, the cap.

        `tokens` and `seconds` are of what is missing, `bytes` of all entries together. Raises
        AskError naming the entry, requests.RequestException.
        """
        answers = [self._post(entry, dry_run=True) for entry in entries]
        missing = [answer for answer in answers if answer["status"] == "absent"]
        seconds = [answer["seconds"] for answer in missing]
        return {
            "entries": len(answers),
            "known": len(answers) - len(missing),
            "tokens": sum(answer["tokens"] for answer in missing),
            "seconds": None if None in seconds else round(sum(seconds), 1),
            "bytes": sum(answer["bytes"] for answer in answers),
            "disk_cache_bytes": answers[0]["disk_cache_bytes"] if answers else 0,
        }

    def run(self, entries: Iterable[Entry], advance: Callable[[int], None]) -> dict[str, int]:
        """Has each entry computed that is not known; counts of "saved" and "known".

        Raises AskError naming the entry, requests.RequestException: those before it are kept.
        """
        counts = {"saved": 0, "known": 0}
        for entry in entries:
            answer = self._post(entry, dry_run=False)
            counts[answer["status"]] += 1
            if answer["status"] == "saved":
                advance(answer["tokens"])
        return counts

    def _post(self, entry: Entry, *, dry_run: bool) -> dict[str, Any]:
        response = self._session.post(
            self._url,
            json=entry.body() | {"dry_run": dry_run},
            timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
        )
        if response.status_code != requests.codes.ok:
            raise AskError(f"{entry.id}: {describe(response)}")
        answer: dict[str, Any] = response.json()
        return answer


def read_corpus(path: Path) -> list[Entry]:
    """The file's entries, after the instructions. Raises CorpusError with every problem found."""
    entries, problems = [INSTRUCTIONS], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: {error}; name a readable file in UTF-8") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = Entry.model_validate_json(line)
        except ValidationError as error:
            problems += [f"{path}:{number}: {_problem(each)}" for each in error.errors()]
            continue
        if entry.id in seen:
            problems.append(f"{path}:{number}: id = {entry.id!r} is line {seen[entry.id]}'s too")
        seen[entry.id] = number
        entries.append(entry)
    if problems:
        raise CorpusError("\n".join(problems))
    return entries


def _problem(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"]) or "line"
    return f"{name}: {detail['msg']}"
