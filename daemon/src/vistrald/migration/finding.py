"""A dependence on the old model: where it is, what kind, what will be done with it and why."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

Action = Literal["delete", "edit", "replace", "report"]
Language = Literal["en", "ru"]

KINDS: dict[str, dict[str, str]] = tomllib.loads(
    files(__package__).joinpath("kinds.toml").read_text(encoding="utf-8")
)


def shown(text: str) -> str:
    """A name that is not UTF-8, in a form that can be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, order=True)
class Finding:
    file: str  # relative to the application, with /
    line: int  # from 1; 0: the file as a whole
    kind: str  # a name in kinds.toml
    action: Action
    what: str = ""  # the name, setting or text found
    person: bool = False  # whether a person must decide or do something
    size: int | None = None  # bytes, of model files

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind = {self.kind!r} is not in kinds.toml")

    @property
    def component(self) -> str:
        return KINDS[self.kind]["component"]

    def reason(self, language: Language = "en") -> str:
        return KINDS[self.kind][language]

    def todo(self, language: Language = "en") -> str:
        """What a person does about it; why it was found, where there is nothing to do."""
        return KINDS[self.kind].get(f"do_{language}", self.reason(language))

    @property
    def place(self) -> str:
        return shown(f"{self.file}:{self.line}" if self.line else self.file)

    def as_dict(self, language: Language = "en") -> dict[str, Any]:
        return {
            "file": shown(self.file),
            "line": self.line,
            "component": self.component,
            "kind": self.kind,
            "action": self.action,
            "what": shown(self.what),
            "reason": self.reason(language),
            "person": self.person,
        } | ({} if self.size is None else {"bytes": self.size})
