"""From a scan to the exact changes of files; still reads only."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from vistrald.migration.finding import Finding
from vistrald.migration.python_edit import EditError, edit
from vistrald.migration.scan import Scan
from vistrald.migration.source import decode, lines_of

CLIENT_FILE = ("vistrald.client", "vistral_service.py")  # package and file of the drop-in client


@dataclass(frozen=True)
class Change:
    path: Path  # absolute
    kind: Literal["create", "edit", "delete", "move"]
    old: bytes = b""
    new: bytes = b""
    like: Path | None = None  # whose owner and mode a created file gets
    size: int = 0  # bytes that finish frees, of moved files


def read_client() -> bytes:
    """The client that takes the old service's place. Raises FileNotFoundError."""
    package, name = CLIENT_FILE
    try:
        return files(package).joinpath(name).read_bytes()
    except ModuleNotFoundError:
        raise FileNotFoundError(f"{package}/{name} is not in this installation") from None


def changes_of(scan: Scan, client: bytes) -> tuple[list[Change], list[Finding]]:
    """The changes in their order, and findings about files that could not be edited after all."""
    changes: list[Change] = []
    failed: list[Finding] = []
    for path, replaced in sorted(scan.clients.items()):
        if not (scan.root / path).exists():
            changes.append(_created(scan.root / path, client, scan.root / replaced))
    for path, fixes in sorted(scan.python.items()):
        source = scan.sources[path]
        try:
            new = source.encode(edit(source.text, fixes))
        except (EditError, UnicodeEncodeError) as error:
            failed.append(Finding(path, 0, "unparsable", "report", str(error), person=True))
            continue
        changes.append(_edited(scan, path, new))
    for path, text in sorted(scan.texts.items()):
        changes.append(_edited(scan, path, scan.sources[path].encode(text)))
    for path in sorted(scan.removed):
        removed = scan.sources.get(path)  # None: a symbolic link
        old = removed.encode(removed.text) if removed else b""
        changes.append(Change(scan.root / path, "delete", old))
    for path, size in sorted(scan.models.items()):
        changes.append(Change(scan.root / path, "move", size=size))
    return changes, failed


def diff(change: Change, root: Path) -> str:
    """An edit as unified diff; "" for other changes.

    Without context outside of Python: a plan is passed around, and passwords stand beside settings.
    """
    if change.kind != "edit":
        return ""
    old, new = lines_of(decode(change.old).text), lines_of(decode(change.new).text)
    name = str(change.path.relative_to(root))
    context = 2 if name.endswith(".py") else 0
    lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", n=context)
    return "".join(_with_end(lines))


def _with_end(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _created(path: Path, contents: bytes, like: Path) -> Change:
    return Change(path, "create", new=contents, like=like)


def _edited(scan: Scan, path: str, new: bytes) -> Change:
    source = scan.sources[path]
    return Change(scan.root / path, "edit", source.encode(source.text), new)
