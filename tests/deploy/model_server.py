"""A hub of models for the tests, in a lab's network: ranges, and every way to be a bad server."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab.network import GATEWAY, namespace, path
from lab.relay import inside

TOKEN = "hf_secret0123456789"
COMMIT = "c0ffee" * 6 + "1234"


@dataclass
class Hub:
    """Files by name, and what was asked. The first folder of an address is the behaviour.

    plain; noranges; slow (1 MB/s); cut (each connection after 1 MB); busy (503 now and then);
    down (503 always); wrong (a byte altered); short (half of it); gone (404); gated
    (only with the token, then a redirection to another origin, as a hub's store is one).
    """

    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    requests: list[dict[str, Any]] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    url: str = ""
    store: str = ""  # the other origin

    def of(self, behaviour: str) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["behaviour"] == behaviour]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        # As a proxy gets it, the request line has the whole address.
        address = urlsplit(self.path)
        _, behaviour, name = address.path.split("/", 2)
        hub.asked[behaviour] += 1
        hub.requests.append(
            {
                "behaviour": behaviour,
                "method": self.command,
                "range": self.headers.get("Range", ""),
                "token": self.headers.get("Authorization", ""),
                "proxied": bool(address.netloc),
                "origin": self.headers.get("Host", ""),
            }
        )
        data = hub.files.get(Path(name).name)
        if data is None or behaviour == "gone":
            self._refuse(404)
        elif behaviour == "down" or (behaviour == "busy" and hub.asked["busy"] in {1, 3}):
            self._refuse(503)
        elif behaviour == "gated":
            self._gate(name)
        else:
            self._send(behaviour, data)

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _gate(self, name: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401)
            return
        self._refuse(302, Location=f"{self.hub.store}/signed/{name}?signature=s3cr3t")

    def _send(self, behaviour: str, data: bytes) -> None:
        if behaviour == "wrong":
            data = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
        if behaviour == "short":
            data = data[: len(data) // 2]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if behaviour == "noranges":
            asked = None
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]), len(data) - 1) if asked and asked[2] else len(data) - 1
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = memoryview(data)[first : last + 1]
        if behaviour == "cut" and len(body) > 1:
            body = body[: 1 << 20]
            self.close_connection = True
        for start in range(0, len(body), 1 << 16):
            if behaviour == "slow":
                time.sleep(1 / 16)
            try:
                self.wfile.write(body[start : start + (1 << 16)])
            except OSError:
                self.close_connection = True
                return


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[_Handler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


@contextmanager
def serving(lab: str) -> Iterator[Hub]:
    """A hub on two ports of the lab's gateway: two origins."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = []
    for _ in range(2):
        listener = inside(path(namespace(lab)), lambda: socket.create_server((GATEWAY, 0)))
        servers.append(_Server(listener, handler))
    hub.url, hub.store = (f"http://{GATEWAY}:{s.socket.getsockname()[1]}" for s in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
