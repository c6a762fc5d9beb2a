"""Every change that a migration makes to a disk, each durable when it returns.

Tests hand in a subclass whose `before` or `after` fails or ends the process at a chosen point.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vistrald.migration.entry import Entry, write_metadata


class Effects:
    def before(self, what: str, path: Path) -> None:
        """Called before each effect."""

    def after(self, what: str, path: Path) -> None:
        """Called when it is on disk."""

    def make_folder(self, path: Path, mode: int = 0o700) -> None:
        with self._effect("make_folder", path):
            path.mkdir(mode)
            sync_folder(path.parent)

    def write(self, path: Path, data: bytes) -> None:
        """A new file; its name is durable once its folder is synced by a rename or `sync`."""
        with self._effect("write", path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def make_link(self, path: Path, target: str) -> None:
        with self._effect("make_link", path):
            path.symlink_to(target)

    def set_metadata(self, path: Path, entry: Entry) -> None:
        with self._effect("set_metadata", path):
            write_metadata(path, entry)
            if not entry.is_link:
                sync_file(path)

    def rename(self, source: Path, target: Path) -> None:
        with self._effect("rename", target):
            source.rename(target)
            sync_folder(target.parent)
            sync_folder(source.parent)

    def remove(self, path: Path) -> None:
        with self._effect("remove", path):
            path.unlink()
            sync_folder(path.parent)

    def remove_tree(self, path: Path) -> None:
        with self._effect("remove_tree", path):
            shutil.rmtree(path)
            sync_folder(path.parent)

    def set_times(self, path: Path, atime_ns: int, mtime_ns: int) -> None:
        with self._effect("set_times", path):
            os.utime(path, ns=(atime_ns, mtime_ns))
            sync_folder(path)

    def overwrite(self, path: Path, offset: int, data: bytes) -> None:
        """In place, within a file that has the room: needs no more space on the disk."""
        with self._effect("overwrite", path):
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.pwrite(descriptor, data, offset)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def sync(self, folder: Path) -> None:
        with self._effect("sync", folder):
            sync_folder(folder)

    @contextmanager
    def _effect(self, what: str, path: Path) -> Iterator[None]:
        self.before(what, path)
        yield
        self.after(what, path)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a mode without reading: the next sync of the file system has it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
