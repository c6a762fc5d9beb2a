"""Before the first change: refuses what cannot be done safely, archives and verifies the rest."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vistrald.migration.changes import Change
from vistrald.migration.effects import Effects
from vistrald.migration.entry import Entry, digest, look
from vistrald.migration.journal import Folder, Run, Step

MARKER = ".vistral-migration"  # in the application: where its archive is
# Manifest, folders and the blocks that files do not fill.
SPARE_BYTES = 2**20


class MigrationError(Exception):
    """Why nothing was done or what was undone; one line for each reason, with a remedy."""


def check(root: Path, archive: Path, changes: Iterable[Change]) -> None:
    """Raises MigrationError with everything that speaks against it."""
    problems = []
    if archive == root or archive.is_relative_to(root) or root.is_relative_to(archive):
        raise MigrationError(
            f"{archive}: the archive and the application {root} lie one in the other; choose a "
            f"folder beside it, for example {root.parent / (root.name + '-archive')}"
        )
    changes = list(changes)
    device = _existing(archive).stat().st_dev
    for change in changes:
        place = change.path if change.kind != "create" else change.path.parent
        info = place.lstat()
        if info.st_dev != device:
            problems.append(
                f"{change.path} is on another file system than the archive {archive}, so that it "
                "could not be moved by a rename; choose an archive on the same one, or leave a "
                "folder of models out (--models) and remove it by hand"
            )
        if change.kind in ("edit", "delete") and info.st_nlink > 1:
            problems.append(
                f"{change.path} has {info.st_nlink} hard links, which an edit would separate; "
                "make it a file of its own (cp, then mv over it)"
            )
        if not os.access(change.path.parent, os.W_OK | os.X_OK):
            problems.append(
                f"{change.path.parent} is not writable for user {os.geteuid()}; run as its owner "
                "or as root"
            )
    needed = sum(len(each.old) + len(each.new) for each in changes) + SPARE_BYTES
    free = shutil.disk_usage(_existing(archive)).free
    if free < needed:
        problems.append(
            f"{archive} has {free} bytes free, the archive needs {needed}; free some there"
        )
    if problems:
        raise MigrationError("\n".join(dict.fromkeys(problems)))


def prepare(
    root: Path, archive: Path, home: Path, changes: Iterable[Change], effects: Effects
) -> Run:
    """Archives every original and stages every new file. On any error nothing of it is left.

    Raises MigrationError, OSError.
    """
    try:
        effects.make_folder(home)
        for name in ("originals", "new", "models", "kept"):
            effects.make_folder(home / name)
        run = Run(home, root, [])
        run.steps.append(_marker(run, archive, effects))
        for number, change in enumerate(changes, start=1):
            run.steps.append(_step(run, number, change, effects))
        for step in run.steps:
            folder = step.path.parent
            run.folders.setdefault(str(folder), _folder(folder))
        effects.sync(home / "originals")
        effects.sync(home / "new")
        _verify(run)
        run.write(effects)
    except (OSError, MigrationError):
        if home.exists():
            shutil.rmtree(home, ignore_errors=True)
        raise
    return run


def _marker(run: Run, archive: Path, effects: Effects) -> Step:
    home = run.application.stat()
    path = run.application / MARKER
    data = json.dumps({"archive": str(archive)}).encode() + b"\n"
    entry = Entry("", 0o644, home.st_uid, home.st_gid, home.st_mtime_ns, home.st_mtime_ns)
    step = Step(0, path, "create", None, None)
    return replace(step, after=_stage(run.fresh(step), data, entry, effects))


def _step(run: Run, number: int, change: Change, effects: Effects) -> Step:
    step = Step(number, change.path, change.kind, None, None, change.size)
    if change.kind == "move":
        return replace(step, before=look(change.path, by_identity=True))
    if change.kind == "create":
        like = look(change.like or change.path.parent)
        if like is None:
            raise MigrationError(f"{change.like} is gone; scan again")
        entry = replace(like, xattrs={})
        return replace(step, after=_stage(run.fresh(step), change.new, entry, effects, old=False))
    before = look(change.path)
    if before is None:
        raise MigrationError(f"{change.path} is gone since the scan; run it again")
    if before.is_link:
        effects.make_link(run.original(step), before.content.removeprefix("-> "))
    else:
        data = change.path.read_bytes()
        if data != change.old and change.kind == "edit":
            raise MigrationError(f"{change.path} changed since the scan; run it again")
        effects.write(run.original(step), data)
    effects.set_metadata(run.original(step), before)
    after = None
    if change.kind == "edit":
        after = _stage(run.fresh(step), change.new, before, effects, old=False)
    return replace(step, before=before, after=after)


def _stage(path: Path, data: bytes, like: Entry, effects: Effects, *, old: bool = True) -> Entry:
    """A new file with owner, mode and attributes of another; what it then is."""
    effects.write(path, data)
    info = path.stat()
    times = like if old else replace(like, atime_ns=info.st_atime_ns, mtime_ns=info.st_mtime_ns)
    effects.set_metadata(path, times)
    made = look(path)
    if made is None:
        raise MigrationError(f"{path} vanished; is another program cleaning up there?")
    return made


def _verify(run: Run) -> None:
    """Reads the archive back, and looks whether the application changed meanwhile."""
    for step in run.steps:
        now = look(step.path, by_identity=step.kind == "move")
        if (now and now.content) != (step.before and step.before.content):
            raise MigrationError(
                f"{step.path} changed while it was being archived; stop what writes to it, and run "
                "it again"
            )
        original = run.original(step)
        copied = step.kind in ("edit", "delete") and step.before and not step.before.is_link
        if copied and step.before and digest(original) != step.before.content:
            raise MigrationError(f"{original} does not read back as {step.path}; check the disk")


def _folder(path: Path) -> Folder:
    info = path.stat()
    names = sorted(os.listdir(path))  # noqa: PTH208 (names are wanted)
    mode = info.st_mode & 0o7777
    return Folder(mode, info.st_uid, info.st_gid, info.st_atime_ns, info.st_mtime_ns, names)


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
