"""A pin of a model: revision, name, size and sha256 of each file, from a server or from the bytes.

Hugging Face states what is needed in the headers of its first answer: X-Linked-Size, X-Linked-ETag
(the sha256) and X-Repo-Commit. Where a server does not, the file is hashed.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import requests

REDIRECTIONS = 10
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 4 * 2**20
PIECE_BYTES = 2**16  # lost at most when a connection breaks
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")
DIGEST = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class PinError(Exception):
    """A file that cannot be pinned; the text names the remedy."""


@dataclass(frozen=True)
class Pin:
    """One file of one revision; `url` and `revision` are empty where they are not known."""

    file: str
    size: int
    sha256: str
    url: str = ""
    revision: str = ""


@dataclass(frozen=True)
class Stated:
    """What a server says of a file; None: it does not."""

    url: str  # of the same bytes for ever, where the server knows revisions
    file: str
    size: int | None
    sha256: str | None
    revision: str


class _Token(requests.auth.AuthBase):
    """Sends the token, or nothing: without it requests would look into ~/.netrc."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def all_parts(target: str) -> list[str]:
    """The names of all files of a split model, from that of its first; else the name itself."""
    match = SPLIT.search(target)
    if not match:
        return [target]
    if match[1] != "00001":
        raise PinError(f"{target} is part {int(match[1])}: give the first, …-00001-of-{match[2]}")
    return [SPLIT.sub(f"-{n:05}-of-{match[2]}", target) for n in range(1, int(match[2]) + 1)]


def ask(url: str, token: str) -> Stated:
    """Asks the server without fetching. Raises PinError."""
    at, revision, size, sha256 = url, "", None, None
    for _ in range(REDIRECTIONS):
        with _get(at, token if _origin(at) == _origin(url) else "", method="HEAD") as answer:
            headers = answer.headers
            revision = revision or headers.get("X-Repo-Commit", "")
            stated = headers.get("X-Linked-ETag", "").strip('W/"')
            if sha256 is None and DIGEST.fullmatch(stated) and headers.get("X-Linked-Size"):
                sha256, size = stated, int(headers["X-Linked-Size"])
            if answer.is_redirect and sha256 is None:
                at = urljoin(at, headers["Location"])
                continue
            if size is None and headers.get("Content-Length", "").isdigit():
                size = int(headers["Content-Length"])
        break
    else:
        raise PinError(f"{_shown(url)}: more than {REDIRECTIONS} redirections")
    fixed = re.sub(r"/resolve/[^/]+/", f"/resolve/{revision}/", url) if revision else url
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    return Stated(fixed.removesuffix("?download=true"), name, size, sha256, revision)


def pin_url(url: str, token: str, keep: Path | None, progress: Progress) -> Pin:
    """The pin of what a server has; `keep`, a path, gets the file, which then is hashed.

    Raises PinError.
    """
    stated = ask(url, token)
    if keep is None:
        if stated.sha256 is None or stated.size is None:
            much = f"{stated.size / 1e9:.2f} GB" if stated.size else "of unknown size"
            raise PinError(
                f"{_shown(url)}: the server does not state the sha256 (X-Linked-ETag), so the file "
                f"has to be read whole, {much}: add --download FILE, or give a local copy's path"
            )
        return Pin(stated.file, stated.size, stated.sha256, stated.url, stated.revision)
    size, sha256 = download(stated.url, token, keep, progress)
    if stated.sha256 is not None and (size, sha256) != (stated.size, stated.sha256):
        raise PinError(
            f"{keep}: {size} bytes with sha256 {sha256} came, the server states {stated.size} and "
            f"{stated.sha256}: fetch it again"
        )
    return Pin(stated.file, size, sha256, stated.url, stated.revision)


def pin_file(path: Path, progress: Progress) -> Pin:
    """The pin of a local file. Raises PinError."""
    try:
        size = path.stat().st_size
        digest, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                digest.update(piece)
                done += len(piece)
                progress(done, size)
    except OSError as error:
        raise PinError(f"{path}: {error.strerror}; give a readable file or an address") from None
    return Pin(path.name, size, digest.hexdigest())


def download(url: str, token: str, path: Path, progress: Progress) -> tuple[int, str]:
    """Fetches a file, going on where an earlier run was cut off; its size and sha256."""
    part = path.with_name(path.name + ".part")
    digest, done = hashlib.sha256(), 0
    if part.exists():
        with part.open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                digest.update(piece)
                done += len(piece)
    at = url
    for _ in range(REDIRECTIONS):
        headers = {"Range": f"bytes={done}-"} if done else {}
        with _get(at, token if _origin(at) == _origin(url) else "", headers=headers) as answer:
            if answer.is_redirect:
                at = urljoin(at, answer.headers["Location"])
                continue
            if answer.status_code == 200 and done:  # the server has no ranges: from the start
                digest, done = hashlib.sha256(), 0
            length = answer.headers.get("Content-Length", "")
            total = done + int(length) if length.isdigit() else 0
            try:
                with part.open("ab" if done else "wb") as file:
                    for piece in answer.iter_content(PIECE_BYTES):
                        file.write(piece)
                        digest.update(piece)
                        done += len(piece)
                        progress(done, total)
            except (OSError, requests.RequestException) as error:
                raise PinError(
                    f"{_shown(at)}: cut off after {done} bytes ({error}); {part} keeps them, run "
                    "again to go on"
                ) from None
            part.replace(path)
            return done, digest.hexdigest()
    raise PinError(f"{_shown(url)}: more than {REDIRECTIONS} redirections")


def as_entry(pins: list[Pin]) -> dict[str, object]:
    """The catalogue's entry of a model with these files."""
    files = []
    for pin in pins:
        file: dict[str, object] = {"file": pin.file, "size": pin.size, "sha256": pin.sha256}
        files.append(file | ({"urls": [pin.url]} if pin.url else {}))
    revision = pins[0].revision
    return ({"revision": revision} if revision else {}) | {"files": files}


def as_yaml(name: str, pins: list[Pin]) -> str:
    """The same for the inventory. A JSON string is a YAML string."""
    lines = ["model_catalogue_site:", f"  {name}:"]
    if pins[0].revision:
        lines.append(f"    revision: {json.dumps(pins[0].revision)}")
    lines.append("    files:")
    for pin in pins:
        lines += [
            f"      - file: {json.dumps(pin.file, ensure_ascii=False)}",
            f"        size: {pin.size}",
            f"        sha256: {pin.sha256}",
        ]
        if pin.url:
            lines.append(f"        urls: [{json.dumps(pin.url)}]")
    return "\n".join(lines)


def entry_name(file: str) -> str:
    """A name that the daemon takes for a model, from that of its (first) file."""
    stem = SPLIT.sub("", file).removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:64] or "model"


def _get(
    url: str, token: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> requests.Response:
    """One request, redirections left to the caller. Raises PinError for what is no answer."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PinError(f"{url} is neither an http or https address nor a file")
    if token and parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost"}:
        raise PinError(f"{_shown(url)}: a token is not sent over plain http; use https")
    try:
        answer = requests.request(
            method,
            url,
            headers={"Accept-Encoding": "identity"} | (headers or {}),
            auth=_Token(token),
            allow_redirects=False,
            stream=True,
            timeout=TIMEOUT_SECONDS,
        )
    except requests.RequestException as error:
        raise PinError(f"{_shown(url)}: no answer ({error}); check address and proxy") from None
    if answer.status_code in {401, 403}:
        why = "the token is wrong, or the repository's terms are not accepted yet" if token else (
            "the repository is gated; set HF_TOKEN or give --token-file"
        )  # fmt: skip
        raise PinError(f"{_shown(url)} answers {answer.status_code}: {why}")
    if answer.status_code >= 400:
        raise PinError(f"{_shown(url)} answers {answer.status_code}; correct address or revision")
    return answer


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _shown(url: str) -> str:
    """Without user, password and signed query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
