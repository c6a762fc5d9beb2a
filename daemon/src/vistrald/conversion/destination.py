"""A file that is whole or not there: written under another name, synced, then renamed."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vistrald.conversion.errors import ConversionError


def check(destination: Path, needed: int) -> None:
    """Raises ConversionError: the file is there, its folder is not, or `needed` bytes are not free.

    What an interrupted run left counts as free: it will be removed.
    """
    if destination.exists():
        raise ConversionError(f"{destination} is there already; remove it or name another file")
    if not destination.parent.is_dir():
        raise ConversionError(f"{destination.parent} is no folder; make it: mkdir -p")
    part = part_of(destination)
    left = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(destination.parent).free + left
    if needed > free:
        raise ConversionError(
            f"{destination} takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on its disk; "
            f"free {(needed - free) / 1e9:.2f} GB or name a file on another one"
        )


def part_of(destination: Path) -> Path:
    return destination.with_name(destination.name + ".part")


@contextmanager
def whole(destination: Path) -> Iterator[Path]:
    """The name to write under; renamed at the end, removed if anything is raised.

    A killed process leaves its part, which the next run writes anew from the beginning. Raises
    ConversionError while another process writes into the same folder.
    """
    part = part_of(destination)
    folder = os.open(destination.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink(missing_ok=True)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.rename(destination)
        os.fsync(folder)
    except BlockingIOError:
        raise ConversionError(
            f"another conversion is writing into {destination.parent}; wait until it has ended"
        ) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(folder)
