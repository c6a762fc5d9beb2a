"""The journal of one run: what is to be changed, the originals, and how far it has come.

A run's folder holds:
  manifest.json   steps with what was there before and what comes after; written once, durable
                  before the first change
  state           how far it has come, overwritten in place: never needs room on a full disk
  originals/N     the file that step N edits or deletes, with its metadata
  new/N           the file that step N puts in place
  models/N        a model file, moved here by a rename
  kept/           what was found changed at a rollback
"""

import json
import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from vistrald.migration.effects import Effects
from vistrald.migration.entry import Entry

SLOT_BYTES = 512  # a disk's sector: written whole or not at all
FORMAT = 1


class Phase(StrEnum):
    PREPARED = "prepared"
    APPLYING = "applying"
    APPLIED = "applied"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"
    FINISHING = "finishing"
    FINISHED = "finished"


@dataclass(frozen=True)
class Step:
    number: int
    path: Path
    kind: Literal["create", "edit", "delete", "move"]
    before: Entry | None
    after: Entry | None
    size: int = 0  # bytes of a model file

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "kind": self.kind,
            "before": self.before and self.before.as_dict(),
            "after": self.after and self.after.as_dict(),
            "bytes": self.size,
        }


@dataclass(frozen=True)
class Folder:
    """A folder in which something changes, as it was."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    names: list[str]


@dataclass
class Run:
    home: Path
    application: Path
    steps: list[Step]
    folders: dict[str, Folder] = field(default_factory=dict)

    @classmethod
    def open(cls, home: Path) -> Self | None:
        """None if the run was interrupted before it could change anything.

        Raises ValueError for a manifest of another version or a damaged one.
        """
        file = home / "manifest.json"
        if not file.exists() or not (home / "state").exists():
            return None
        data = json.loads(file.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise ValueError(
                f"{file}: format = {data.get('format')}, this version of vistrald reads {FORMAT}; "
                "use the version that made it"
            )
        steps = [
            Step(
                number,
                Path(each["path"]),
                each["kind"],
                Entry.from_dict(each["before"]),
                Entry.from_dict(each["after"]),
                each["bytes"],
            )
            for number, each in enumerate(data["steps"])
        ]
        folders = {name: Folder(**each) for name, each in data["folders"].items()}
        return cls(home, Path(data["application"]), steps, folders)

    def write(self, effects: Effects) -> None:
        """The manifest comes last and by a rename: with it the run begins to exist."""
        effects.write(self.home / "state", b"\0" * (2 * SLOT_BYTES))
        self.set_phase(Phase.PREPARED, effects)
        data = {
            "format": FORMAT,
            "application": str(self.application),
            "steps": [step.as_dict() for step in self.steps],
            "folders": {name: vars(each) for name, each in self.folders.items()},
        }
        part = self.home / "manifest.part"
        effects.write(part, json.dumps(data, indent=1).encode())
        effects.rename(part, self.home / "manifest.json")

    def original(self, step: Step) -> Path:
        return self.home / "originals" / str(step.number)

    def fresh(self, step: Step) -> Path:
        return self.home / "new" / str(step.number)

    def model(self, step: Step) -> Path:
        return self.home / "models" / f"{step.number}-{step.path.name}"

    @property
    def phase(self) -> Phase:
        return self._state()[1]

    def set_phase(self, phase: Phase, effects: Effects) -> None:
        number, current = self._state()
        if current != phase or not number:
            record = f"{number + 1} {phase}".encode()
            line = record + f" {zlib.crc32(record):08x}\n".encode()
            offset = (number + 1) % 2 * SLOT_BYTES
            effects.overwrite(self.home / "state", offset, line.ljust(SLOT_BYTES, b"\0"))

    def _state(self) -> tuple[int, Phase]:
        """The later of two slots: the one that a torn write hit does not count."""
        data = (self.home / "state").read_bytes()
        found = [(0, Phase.PREPARED)]
        for slot in (data[:SLOT_BYTES], data[SLOT_BYTES:]):
            record, _, check = slot.rstrip(b"\0").strip().rpartition(b" ")
            if record and check == f"{zlib.crc32(record):08x}".encode():
                number, phase = record.decode().split()
                found.append((int(number), Phase(phase)))
        return max(found)


def latest(archive: Path) -> Path | None:
    """The folder of the last run in an archive."""
    runs = sorted(each for each in archive.glob("run-[0-9]*") if each.is_dir())
    return runs[-1] if runs else None


def next_home(archive: Path) -> Path:
    last = latest(archive)
    number = int(last.name.removeprefix("run-")) + 1 if last else 1
    return archive / f"run-{number:04}"
