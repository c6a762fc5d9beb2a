"""Apply, roll back, finish: each as a whole or not at all, whatever interrupts it.

A step is done again without harm: what is at its path tells whether it was done. So an interrupted
run needs to know only its direction, which the journal holds.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistrald.migration.changes import Change
from vistrald.migration.effects import Effects, sync_folder
from vistrald.migration.entry import Entry, digest, look, write_metadata
from vistrald.migration.finding import shown
from vistrald.migration.journal import Phase, Run, Step, latest, next_home
from vistrald.migration.prepare import MARKER, MigrationError, check, prepare


@dataclass
class Outcome:
    changed: bool
    phase: Phase | None
    run: Path | None = None
    steps: int = 0
    freed_bytes: int = 0
    # What was changed by others since, and where their version was put.
    kept: dict[str, str] = field(default_factory=dict)
    resumed: bool = False  # whether an interrupted run was gone on with or undone first

    def as_dict(self) -> dict[str, Any]:
        kept = {shown(path): shown(place) for path, place in self.kept.items()}
        return vars(self) | {"run": self.run and shown(str(self.run)), "kept": kept}


def apply(
    root: Path, archive: Path, plan: Callable[[], list[Change]], effects: Effects | None = None
) -> Outcome:
    """Makes the changes that `plan` answers, under the lock, or finishes an interrupted run.

    Raises MigrationError: nothing was done, or all of it was undone.
    """
    effects = effects or Effects()
    root, archive = root.resolve(), archive.resolve()
    other = find_archive(root)
    if other and other != archive:
        raise MigrationError(
            f"{root} is being migrated with the archive {other}; go on with that one, or roll it "
            "back first"
        )
    with _locked(root, archive, create=True):
        resumed = False
        run = _open(archive, root, effects)
        if run and run.phase in (Phase.PREPARED, Phase.APPLYING):
            _forward(run, effects)
            return Outcome(True, run.phase, run.home, len(run.steps), resumed=True)
        if run and run.phase is Phase.ROLLING_BACK:
            _backward(run, effects)
            resumed = True
        if run and run.phase is Phase.FINISHING:
            _finish(run, effects)
            resumed = True
        changes = plan()
        if not changes:
            phase, home = (run.phase, run.home) if run else (None, None)
            return Outcome(resumed, phase, home, resumed=resumed)
        if run and run.phase is Phase.APPLIED:
            raise MigrationError(
                f"{root} was migrated by {run.home} and now has {len(changes)} more changes to "
                f"make, the first in {changes[0].path}; finish that run or roll it back first"
            )
        check(root, archive, changes)
        run = prepare(root, archive, next_home(archive), changes, effects)
        _forward(run, effects)
        return Outcome(True, run.phase, run.home, len(run.steps), resumed=resumed)


def roll_back(archive: Path, effects: Effects | None = None) -> Outcome:
    """Everything back as it was, from any phase before finish. Raises MigrationError."""
    effects = effects or Effects()
    with _locked_run(archive, effects) as run:
        if run.phase in (Phase.FINISHING, Phase.FINISHED):
            raise MigrationError(
                f"{run.home} is {run.phase}: its originals are gone; restore a backup instead"
            )
        if run.phase is Phase.ROLLED_BACK:
            return Outcome(False, run.phase, run.home)
        resumed = run.phase is not Phase.APPLIED
        kept = _backward(run, effects)
        return Outcome(True, run.phase, run.home, len(run.steps), kept=kept, resumed=resumed)


def finish(archive: Path, effects: Effects | None = None) -> Outcome:
    """Frees the old models and the originals; there is no way back. Raises MigrationError."""
    effects = effects or Effects()
    with _locked_run(archive, effects) as run:
        if run.phase is Phase.FINISHED:
            return Outcome(False, run.phase, run.home)
        if run.phase not in (Phase.APPLIED, Phase.FINISHING):
            raise MigrationError(
                f"{run.home} is {run.phase}: only what was applied can be finished; apply it or "
                "roll it back"
            )
        resumed = run.phase is Phase.FINISHING
        freed = sum(step.size for step in run.steps if run.model(step).exists())
        _finish(run, effects)
        return Outcome(True, run.phase, run.home, len(run.steps), freed, resumed=resumed)


def status(archive: Path) -> dict[str, Any]:
    """Where the last run stands, and what was changed since by others. Raises MigrationError."""
    home = latest(archive)
    run = _read(home) if home else None
    if run is None:
        return {"archive": str(archive), "phase": None, "changed_since": []}
    changed = []
    if run.phase is Phase.APPLIED:
        for step in run.steps:
            now = look(step.path, by_identity=step.kind == "move")
            if _content(now) != _content(step.after):
                changed.append(str(step.path))
    return {
        "archive": str(archive),
        "run": str(run.home),
        "application": str(run.application),
        "phase": run.phase,
        "steps": len(run.steps),
        "model_bytes": sum(step.size for step in run.steps if run.model(step).exists()),
        "changed_since": changed,
    }


def find_archive(root: Path) -> Path | None:
    """The archive of an application that is migrated and not finished."""
    try:
        return Path(json.loads((root / MARKER).read_text())["archive"])
    except (OSError, ValueError, KeyError):
        return None


# --- The three directions ----------------------------------------------------------


def _forward(run: Run, effects: Effects) -> None:
    run.set_phase(Phase.APPLYING, effects)
    try:
        for step in run.steps:
            _do(run, step, effects)
    except (OSError, MigrationError) as error:
        try:
            _backward(run, effects)
        except (OSError, MigrationError) as second:
            raise MigrationError(
                f"{error}\nundoing it failed too: {second}\nmend that, then run "
                f"`vistrald migrate rollback {run.application}`"
            ) from error
        raise MigrationError(f"{error}; everything was undone") from error
    run.set_phase(Phase.APPLIED, effects)


def _do(run: Run, step: Step, effects: Effects) -> None:
    now = look(step.path, by_identity=step.kind == "move")
    if _content(now) == _content(step.after):
        return
    if _content(now) != _content(step.before):
        raise MigrationError(
            f"{step.path} was changed by another program meanwhile; stop it and run this again"
        )
    match step.kind:
        case "create" | "edit":
            effects.rename(run.fresh(step), step.path)
        case "delete":
            effects.remove(step.path)
        case "move":
            effects.rename(step.path, run.model(step))


def _backward(run: Run, effects: Effects) -> dict[str, str]:
    _check_originals(run)
    run.set_phase(Phase.ROLLING_BACK, effects)
    kept: dict[str, str] = {}
    for step in reversed(run.steps):
        _undo(run, step, kept, effects)
    # The deepest first: restoring a folder's time is undone by a change in it.
    for name in sorted(run.folders, key=len, reverse=True):
        folder, path = run.folders[name], Path(name)
        if path.is_dir() and sorted(os.listdir(path)) == folder.names:  # noqa: PTH208
            effects.set_times(path, folder.atime_ns, folder.mtime_ns)
    run.set_phase(Phase.ROLLED_BACK, effects)
    return kept


def _check_originals(run: Run) -> None:
    """Whether what is still to be restored is as it was archived."""
    damaged = []
    for step in run.steps:
        original = run.original(step)
        if step.kind in ("edit", "delete") and step.before and os.path.lexists(original):
            good = step.before.is_link or digest(original) == step.before.content
            damaged += [] if good else [f"{original}, of {step.path}, is damaged"]
    if damaged:
        raise MigrationError(
            "\n".join(damaged) + "\nnothing was changed; restore these files from a backup"
        )


def _undo(run: Run, step: Step, kept: dict[str, str], effects: Effects) -> None:
    source = run.model(step) if step.kind == "move" else run.original(step)
    now = look(step.path, by_identity=step.kind == "move")
    if _content(now) == _content(step.before):
        if now and step.before and not now.same_metadata(step.before):
            effects.set_metadata(step.path, step.before)
        return
    if step.kind != "create" and not os.path.lexists(source):
        return  # restored by an interrupted rollback, and changed by somebody since
    if now and _content(now) != _content(step.after):
        kept[str(step.path)] = str(_keep(run, step, effects))
    elif step.kind == "create":
        effects.remove(step.path)
    if step.before:
        _make_parents(run, step.path.parent, effects)
        effects.rename(source, step.path)


def _keep(run: Run, step: Step, effects: Effects) -> Path:
    """Puts what others made of a path aside, out of the application."""
    place = run.home / "kept" / f"{step.number}-{step.path.name}"
    effects.rename(step.path, place)
    return place


def _make_parents(run: Run, path: Path, effects: Effects) -> None:
    if path.is_dir():
        return
    _make_parents(run, path.parent, effects)
    effects.make_folder(path, 0o755)
    if folder := run.folders.get(str(path)):
        entry = Entry("", folder.mode, folder.uid, folder.gid, folder.atime_ns, folder.mtime_ns)
        write_metadata(path, entry)


def _finish(run: Run, effects: Effects) -> None:
    run.set_phase(Phase.FINISHING, effects)
    for name in ("models", "originals", "new"):
        if (run.home / name).exists():
            effects.remove_tree(run.home / name)
    marker = run.steps[0]
    if marker.path.exists():
        effects.remove(marker.path)
    run.set_phase(Phase.FINISHED, effects)


def _content(entry: Entry | None) -> str | None:
    return entry.content if entry else None


# --- Which run, and nobody else's --------------------------------------------------


def _open(archive: Path, root: Path, effects: Effects) -> Run | None:
    home = latest(archive)
    if home is None:
        return None
    run = _read(home)
    if run is None:
        effects.remove_tree(home)  # interrupted before anything was changed
        return _open(archive, root, effects)
    if run.application != root:
        raise MigrationError(
            f"{archive} is the archive of {run.application}, not of {root}; choose another one"
        )
    return run


def _read(home: Path) -> Run | None:
    try:
        return Run.open(home)
    except (ValueError, KeyError, TypeError) as error:
        raise MigrationError(f"{home}: {error}") from None


@contextmanager
def _locked_run(archive: Path, effects: Effects) -> Iterator[Run]:
    archive = archive.resolve()
    home = latest(archive)
    run = _read(home) if home else None
    if run is None:
        raise MigrationError(
            f"{archive} holds no migration that changed anything; name the folder that was given "
            "to apply with --archive"
        )
    with _locked(run.application, archive, create=False):
        yield run


@contextmanager
def _locked(root: Path, archive: Path, *, create: bool) -> Iterator[None]:
    """One at a time, by the application and by the archive; the kernel frees a dead one's lock."""
    descriptors: list[int] = []
    try:
        if create:
            if not root.is_dir():
                raise MigrationError(f"{root} is not a directory; name the application's folder")
            check(root, archive, [])
            archive.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(archive.parent)
        for folder in (root, archive):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            descriptors.append(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MigrationError(
                    f"another migration is at work on {folder}; wait until it has ended"
                ) from None
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        if create:
            with suppress(OSError):  # it stays unless it is empty: there was nothing to do
                archive.rmdir()
