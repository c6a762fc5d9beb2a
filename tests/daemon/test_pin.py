"""Pins from a server that states them, from one that does not, and from a local file."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vistrald.cli import main

BODY = b"GGUF" + bytes(range(256)) * 2000
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"


class Hub(BaseHTTPRequestHandler):
    """/hub/… as Hugging Face does it; /cdn/… and /bare/… only have the bytes."""

    asked: list[tuple[str, str, str]] = []  # noqa: RUF012 (of the one server that a test has)
    cut = False
    stated = SHA256

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        token, ranges = self.headers.get("Authorization", ""), self.headers.get("Range", "")
        Hub.asked.append((self.path, token, ranges))
        if self.path.startswith("/gated") and token != f"Bearer {TOKEN}":
            self.send_error(401)
        elif self.path.startswith(("/hub", "/gated")):
            self.send_response(302)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(BODY)))
            self.send_header("X-Linked-ETag", f'"{self.stated}"')
            # Another name of the same server is another origin.
            self.send_header("Location", f"http://localhost:{self.server.server_port}/cdn?sig=s")
            self.send_header("Content-Length", "9")
            self.end_headers()
        elif self.path.startswith(("/cdn", "/bare")):
            first = int(ranges.removeprefix("bytes=").rstrip("-")) if ranges else 0
            self.send_response(206 if ranges else 200)
            self.send_header("Content-Length", str(len(BODY) - first))
            self.end_headers()
            body = BODY[first:]
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        wfile, self.wfile = self.wfile, NoBody(self.wfile)
        self.do_GET()
        self.wfile = wfile


class NoBody:
    """Passes on headers, which end before the first body byte."""

    def __init__(self, wfile: object) -> None:
        self._wfile = wfile

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/"):
            self._wfile.write(data)  # type: ignore[attr-defined]

    def flush(self) -> None:
        self._wfile.flush()  # type: ignore[attr-defined]


@pytest.fixture
def url() -> Iterator[str]:
    Hub.asked, Hub.cut, Hub.stated = [], False, SHA256
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pin(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["pin", *arguments], env=environment)


def test_what_the_hub_states_is_taken_without_a_byte(url: str) -> None:
    result = pin(f"{url}/hub/resolve/main/Vistral-24B.IQ4_XS.gguf", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "ok": True,
        "name": "vistral-24b.iq4_xs",
        "entry": {
            "revision": COMMIT,
            "files": [
                {
                    "file": "Vistral-24B.IQ4_XS.gguf",
                    "size": len(BODY),
                    "sha256": SHA256,
                    # The branch may move; the commit does not.
                    "urls": [f"{url}/hub/resolve/{COMMIT}/Vistral-24B.IQ4_XS.gguf"],
                }
            ],
        },
    }
    assert [path for path, _, _ in Hub.asked] == ["/hub/resolve/main/Vistral-24B.IQ4_XS.gguf"]


def test_the_yaml_is_what_the_inventory_takes(url: str) -> None:
    yaml = pytest.importorskip("yaml")
    result = pin(f"{url}/hub/resolve/main/v.gguf", "--name", "v-24b")
    machine = json.loads(pin(f"{url}/hub/resolve/main/v.gguf", "--json").stdout)
    assert yaml.safe_load(result.stdout) == {"model_catalogue_site": {"v-24b": machine["entry"]}}


def test_all_parts_of_a_split_model_are_pinned(url: str) -> None:
    result = pin(f"{url}/hub/resolve/main/v-00001-of-00003.gguf", "--json")
    report = json.loads(result.stdout)
    assert report["name"] == "v"
    assert [file["file"] for file in report["entry"]["files"]] == [
        f"v-{n:05}-of-00003.gguf" for n in (1, 2, 3)
    ]
    assert "give the first" in pin(f"{url}/hub/v-00002-of-00003.gguf").stderr


def test_the_token_goes_to_the_hub_alone_and_never_into_the_output(
    url: str, tmp_path: Path
) -> None:
    target = f"{url}/gated/resolve/main/v.gguf"
    assert "gated; set HF_TOKEN" in pin(target, HF_TOKEN="").stderr
    assert "the token is wrong" in pin(target, HF_TOKEN="other").stderr
    (tmp_path / "token").write_text(TOKEN + "\n")
    file = tmp_path / "v.gguf"
    result = pin(target, "--token-file", str(tmp_path / "token"), "--download", str(file))
    assert result.exit_code == 0, result.output
    assert file.read_bytes() == BODY
    assert TOKEN not in result.output
    assert {token for path, token, _ in Hub.asked if path.startswith("/cdn")} == {""}


def test_a_server_that_states_nothing_asks_for_the_bytes(url: str, tmp_path: Path) -> None:
    result = pin(f"{url}/bare/v.gguf", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert "add --download FILE, or give a local copy's path" in report["message"]

    Hub.cut = True
    file = tmp_path / "v.gguf"
    result = pin(f"{url}/bare/v.gguf", "--download", str(file))
    assert "run again to go on" in result.stderr
    assert not file.exists()
    Hub.cut = False
    result = pin(f"{url}/bare/v.gguf", "--download", str(file), "--json")
    (pinned,) = json.loads(result.stdout)["entry"]["files"]
    assert (pinned["size"], pinned["sha256"]) == (len(BODY), SHA256)
    assert Hub.asked[-1][2].startswith("bytes=")


def test_bytes_that_are_not_what_the_server_states_are_no_pin(url: str, tmp_path: Path) -> None:
    Hub.stated = "0" * 64
    result = pin(f"{url}/hub/v.gguf", "--download", str(tmp_path / "v.gguf"))
    assert result.exit_code == 1
    assert f"sha256 {SHA256} came, the server states {len(BODY)} and {'0' * 64}" in result.stderr


def test_a_local_file_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "Моя модель.gguf").write_bytes(BODY)
    result = pin(str(tmp_path / "Моя модель.gguf"), "--json")
    report = json.loads(result.stdout)
    assert report["entry"] == {
        "files": [{"file": "Моя модель.gguf", "size": len(BODY), "sha256": SHA256}]
    }
    assert "No such file" in pin(str(tmp_path / "none.gguf")).stderr


def test_what_is_not_there_or_no_address_is_told(url: str) -> None:
    assert "answers 404; correct address or revision" in pin(f"{url}/none.gguf").stderr
    assert "neither an http or https address" in pin("ftp://host/v.gguf").stderr
    assert "a token is not sent over plain http" in pin("http://h.test/v", HF_TOKEN="t").stderr
