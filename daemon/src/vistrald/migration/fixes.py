"""Edits of one Python file, by position, as the review found them and the editor applies them."""

import ast
from dataclasses import dataclass, field
from typing import Any

from vistrald.migration.source import lines_of

Position = tuple[int, int]  # line from 1, column from 0, in characters


@dataclass(frozen=True)
class ImportGroup:
    """One import statement: `from <level dots><module> import names`, or `import names`."""

    level: int
    module: str | None  # None: a plain import
    names: tuple[tuple[str, str | None], ...]  # (name, as)


@dataclass
class Fixes:
    names: dict[Position, str] = field(default_factory=dict)
    strings: dict[Position, str] = field(default_factory=dict)  # what is between the quotes
    values: dict[Position, Any] = field(default_factory=dict)  # numbers and lists
    imports: dict[Position, tuple[ImportGroup, ...]] = field(default_factory=dict)  # (): remove
    tries: set[Position] = field(default_factory=set)  # replaced by what they do on ImportError
    elements: set[Position] = field(default_factory=set)  # removed from their list
    dropped: set[int] = field(default_factory=set)  # first lines of top-level statements

    def __bool__(self) -> bool:
        return any(vars(self).values())


class Columns:
    """ast counts columns in bytes of UTF-8, people and libcst in characters."""

    def __init__(self, text: str) -> None:
        self._lines = lines_of(text)

    def position(self, line: int, byte: int) -> Position:
        source = self._lines[line - 1]
        if source.isascii():
            return line, byte
        return line, len(source.encode()[:byte].decode(errors="replace"))

    def start(self, node: ast.expr | ast.stmt | ast.alias | ast.keyword | ast.arg) -> Position:
        return self.position(node.lineno, node.col_offset)

    def attribute(self, node: ast.Attribute) -> Position:
        """Where the name after the dot begins."""
        end_line, end = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self.position(end_line, end - len(node.attr.encode()))
