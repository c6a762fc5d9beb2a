"""A throw-away virtual environment: sizes are known before anything is fetched."""

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from vistrald.frameworks.packages import PIP
from vistrald.frameworks.process import Limits, StepError, run

RESOLVE_SECONDS = 300
INSTALL_SECONDS = 900
UNPACKED = 4  # bytes on disk for a byte of wheel: torch 3.9, mlx 2.8
SMALL = 64_000_000  # bytes: what pip may write while it resolves, its caches included
ATTEMPT_SECONDS = 20


@dataclass(frozen=True)
class Download:
    """One wheel of a resolution."""

    name: str
    version: str
    url: str
    bytes: int


class Environment:
    def __init__(self, folder: Path, indexes: list[str]) -> None:
        """Raises StepError: kind `install`."""
        self.folder = folder
        self.python = folder / "bin" / "python"
        self._indexes = [f"--extra-index-url={index}" for index in indexes]
        command = [sys.executable, "-m", "venv", str(folder)]
        run(command, Limits(INSTALL_SECONDS), kind="install")
        self._pip(["install", PIP], INSTALL_SECONDS)

    def resolve(self, requirements: tuple[str, ...], largest: int) -> list[Download]:
        """What would be fetched, the largest first.

        Where an index has no metadata file for a wheel, pip fetches the wheel itself, if it has no
        more bytes than `largest`. Raises StepError: `install`, `download` or `timeout`.
        """
        out = self._pip(
            ["install", "--dry-run", "--ignore-installed", "--report=-", *requirements],
            RESOLVE_SECONDS,
            max(largest, SMALL),
        )
        found = [
            (each["metadata"]["name"], each["metadata"]["version"], each["download_info"]["url"])
            for each in json.loads(out)["install"]
        ]
        try:
            with ThreadPoolExecutor(8) as pool:
                sizes = list(pool.map(_size, [url for _, _, url in found]))
        except (requests.RequestException, OSError, KeyError) as error:
            raise StepError("install", f"no size of a wheel: {error}") from None
        downloads = [Download(*each, size) for each, size in zip(found, sizes, strict=True)]
        return sorted(downloads, key=lambda each: -each.bytes)

    def install(self, downloads: list[Download], requirements: tuple[str, ...]) -> float:
        """Seconds. Raises StepError: `disk`, `install` or `timeout`."""
        total = sum(each.bytes for each in downloads)
        check_disk(self.folder, UNPACKED * total)
        began = time.monotonic()
        exact = [f"{each.name}=={each.version}" for each in downloads]
        self._pip(["install", *requirements, *exact], INSTALL_SECONDS, max(total, SMALL) * UNPACKED)
        return time.monotonic() - began

    def _pip(self, arguments: list[str], seconds: float, file_bytes: int | None = None) -> str:
        # Wheels only: building from source would need compilers and time without bound.
        command, *rest = arguments
        options = ["-qq", "--no-input", "--only-binary=:all:", *self._indexes]
        return run(
            [str(self.python), "-m", "pip", command, *options, *rest],
            Limits(seconds, file_bytes=file_bytes),
            kind="install",
        )


def check_disk(folder: Path, needed: int) -> None:
    """Raises StepError: kind `disk`."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise StepError("disk", f"{there}: {needed / 1e9:.1f} GB > {free / 1e9:.1f} GB")


def _size(url: str) -> int:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).stat().st_size
    # The certificates that pip is told to trust, where it is told so.
    verify = os.environ.get("PIP_CERT") or True
    response = requests.head(url, timeout=ATTEMPT_SECONDS, allow_redirects=True, verify=verify)
    response.raise_for_status()
    return int(response.headers["Content-Length"])
