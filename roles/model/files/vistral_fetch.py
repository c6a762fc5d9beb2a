#!/usr/bin/python3
"""Fetches one file by aria2, mirror after mirror, and keeps what it has for the next attempt.

Started by the module vistral_fetch as a transient unit; the host's own Python is enough. The job
(addresses, token) comes as JSON in a file that only this unit can read, and goes on to aria2
through its standard input: a token is on no command line, in no log and in no file that stays.

Redirections are followed here and not by aria2, which would send the token wherever they lead.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

REDIRECTIONS = 10
CONNECT_SECONDS = 20
STALLED_SECONDS = 60  # without a byte
PAUSE_SECONDS = (2, 5, 15, 30)  # before the rounds after the first; the last one stays
DISK_FULL = 9  # aria2's exit status


class RefusedError(Exception):
    """An address that will not do, however often it is asked."""


class TemporaryError(Exception):
    """An address that may do later."""


@dataclass(frozen=True)
class Job:
    """What is to be fetched; `size` in bytes, `limit` as aria2 writes it ("20M", "0": none)."""

    urls: list[str]
    part: Path
    size: int
    token: str
    token_origins: list[str]
    proxy: str
    limit: str
    connections: int
    retries: int


@dataclass(frozen=True)
class Found:
    """Where an address leads, and whether the token goes there."""

    url: str
    with_token: bool


def origin(url: str) -> str:
    """Scheme, host and port: what a token is bound to."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def shown(url: str) -> str:
    """An address without what may be secret in it: user, password, signed query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def may_have_token(url: str, job: Job) -> bool:
    return bool(job.token) and origin(url) in map(origin, job.token_origins)


class _KeepRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def resolve(url: str, job: Job) -> Found:
    """Follows redirections with one byte's request, and compares the size that the server states.

    Raises RefusedError or TemporaryError, with the remedy.
    """
    proxies = {"http": job.proxy, "https": job.proxy} if job.proxy else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _KeepRedirects)
    for _ in range(REDIRECTIONS):
        if urlsplit(url).scheme not in {"http", "https"}:
            raise RefusedError(f"{shown(url)} is neither http nor https")
        with_token = may_have_token(url, job)
        headers = {"Range": "bytes=0-0", "Accept-Encoding": "identity"}
        if with_token:
            headers["Authorization"] = f"Bearer {job.token}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - see above
        try:
            with opener.open(request, timeout=CONNECT_SECONDS) as answer:
                compare_size(url, answer, job.size)
                return Found(url, with_token)
        except urllib.error.HTTPError as error:
            with error:
                location = error.headers.get("Location")
                if error.code in {301, 302, 303, 307, 308} and location:
                    url = urljoin(url, location)
                    continue
                raise denied(url, error.code, job, with_token=with_token) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise TemporaryError(f"{shown(url)}: {reason}") from None
    raise RefusedError(f"{shown(url)}: more than {REDIRECTIONS} redirections")


def compare_size(url: str, answer: Any, size: int) -> None:
    """Refuses another file before it is fetched, where the server states its size."""
    stated = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if answer.status == 200:
        stated = answer.headers.get("Content-Length", "")
    if stated.isdigit() and int(stated) != size:
        raise RefusedError(
            f"{shown(url)} has {stated} bytes, the pin says {size}: it is another file; "
            "correct the address or the pin"
        )


def denied(url: str, status: int, job: Job, *, with_token: bool) -> RefusedError | TemporaryError:
    """What an HTTP status means for the administrator."""
    where = f"{shown(url)} answers {status}"
    if status in {401, 403}:
        if with_token:
            return RefusedError(
                f"{where} although the token was sent: it is wrong or expired, or its owner has "
                "not accepted the repository's terms on its page"
            )
        if job.token:
            return RefusedError(
                f"{where}, and the token was not sent there: {origin(url)} is not in "
                f"model_token_origins ({', '.join(job.token_origins) or 'empty'})"
            )
        return RefusedError(f"{where}: the repository is gated; set model_token (in the vault)")
    if status in {408, 425, 429} or status >= 500:
        return TemporaryError(f"{where}, which may pass")
    return RefusedError(f"{where}: there is no such file; correct the address or the revision")


def input_text(found: Found, job: Job) -> str:
    """One download in the form of aria2's input file."""
    options = {
        "dir": str(job.part.parent),
        "out": job.part.name,
        # .part is resumed where the server can, and begun anew where it cannot.
        "continue": "true",
        "always-resume": "false",
        "max-resume-failure-tries": "1",
        "allow-overwrite": "true",
        "auto-file-renaming": "false",
        "file-allocation": "none",
        "split": str(job.connections),
        "max-connection-per-server": str(job.connections),
        "min-split-size": "8M",
        "max-download-limit": job.limit,
        # Bounded here and repeated by attempt(), which asks for a new signed address each time.
        "max-tries": "3",
        "retry-wait": "2",
        "connect-timeout": str(CONNECT_SECONDS),
        "timeout": str(STALLED_SECONDS),
        "no-netrc": "true",
    }
    if job.proxy:
        options["all-proxy"] = job.proxy
    if found.with_token:
        options["header"] = f"Authorization: Bearer {job.token}"
    lines = [found.url, *(f" {name}={value}" for name, value in options.items())]
    return "\n".join(lines) + "\n"


def bytes_there(part: Path) -> int:
    """What is really on disk: several connections leave holes, which the length does not show."""
    try:
        return part.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def complete(job: Job) -> bool:
    """Whether the whole length is there; aria2 removes its file of pieces at the end."""
    pieces = job.part.with_name(job.part.name + ".aria2")
    return job.part.exists() and job.part.stat().st_size == job.size and not pieces.exists()


def run_aria2(found: Found, job: Job, tell: Callable[[], None]) -> None:
    """One run of aria2; returns when the file is complete. Raises as resolve() does."""
    # Its configuration file would be another place for options; the proxy is the job's alone.
    command = ["aria2c", "--no-conf=true", "--input-file=-", "--console-log-level=error"]
    command += ["--summary-interval=0", "--show-console-readout=false", "--auto-save-interval=10"]
    command += ["--download-result=hide", "--enable-color=false"]
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/nonexistent"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin  # noqa: S101 - for the type checker
        process.stdin.write(input_text(found, job))
        process.stdin.close()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(1)
                break
            tell()
    if status == DISK_FULL:
        raise RefusedError(f"the disk of {job.part.parent} is full; free space there and run again")
    if status != 0:
        raise TemporaryError(f"{shown(found.url)}: the connection broke (aria2 says {status})")
    if (length := job.part.stat().st_size) != job.size:
        job.part.unlink()
        raise RefusedError(
            f"{shown(found.url)} sent {length} bytes, the pin says {job.size}: it is another file"
        )


class Progress:
    """Writes what is going on to a file that the controller reads."""

    def __init__(self, file: Path, job: Job) -> None:
        self.file = file
        self.job = job
        self.began = time.monotonic()
        self.samples = [(self.began, bytes_there(job.part))]
        self.source = ""
        self.note = ""

    def tell(self, state: str = "running", message: str = "") -> None:
        """The rate is that of the last ten seconds."""
        now, done = time.monotonic(), bytes_there(self.job.part)
        self.samples = [*(s for s in self.samples if now - s[0] < 10), (now, done)]
        first, before = self.samples[0]
        rate = max(0.0, (done - before) / (now - first)) if now > first else 0.0
        report = {
            "state": state,
            "message": message,
            "source": self.source,
            "note": self.note,
            "done": min(done, self.job.size),
            "size": self.job.size,
            "rate": rate,
            "seconds_left": (self.job.size - done) / rate if rate else None,
            "seconds": now - self.began,
        }
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(report))
        partial.replace(self.file)


def fetch(job: Job, progress: Progress, pause: Callable[[float], None] = time.sleep) -> str:
    """Fetches the file; empty when it is complete, else why not.

    Each round asks the mirrors in their order. A mirror that is refused is not asked again;
    `retries` rounds without a new byte are the end, so that a bad line that still moves gets
    there, and a dead one is told.
    """
    if len(job.token.split()) > 1:
        return "model_token has a space or a line break inside; put it into the vault as one word"
    if complete(job):
        return ""  # fetched after the playbook had been cut off; whether it is good is seen later
    faults: dict[str, str] = {}
    refused: set[str] = set()
    most, idle, rounds = bytes_there(job.part), 0, 0
    while True:
        for url in job.urls:
            if url in refused:
                continue
            progress.source = shown(url)
            progress.tell()
            try:
                run_aria2(resolve(url, job), job, progress.tell)
            except RefusedError as error:
                faults[url], progress.note = str(error), str(error)
                refused.add(url)
            except TemporaryError as error:
                faults[url], progress.note = str(error), str(error)
            else:
                return ""
        idle = 0 if bytes_there(job.part) > most else idle + 1
        most = max(most, bytes_there(job.part))
        if idle > job.retries or len(refused) == len(set(job.urls)):
            return "; ".join(faults.values())
        progress.tell()
        pause(PAUSE_SECONDS[min(rounds, len(PAUSE_SECONDS) - 1)])
        rounds += 1


def main() -> None:
    job_file, status_file = map(Path, sys.argv[1:])
    data = json.loads(job_file.read_text())
    job = Job(**data | {"part": Path(data["part"]), "token": data["token"].strip()})
    progress = Progress(status_file, job)
    try:
        fault = fetch(job, progress)
    except Exception as error:
        progress.tell("failed", f"{type(error).__name__}: {error}")
        raise
    progress.tell("failed" if fault else "done", fault)
    sys.exit(1 if fault else 0)


if __name__ == "__main__":
    main()
