"""The way by which hosts reach package servers, and nothing else: a forward HTTP proxy.

It listens in the lab's namespace and fetches in the root namespace. Its own process (see
process.py), with the arguments NAMESPACE_FILE SERVER….
"""

import shutil
import socket
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from lab.network import GATEWAY
from lab.relay import inside, relay

PORT = 3128
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "host"}


class _KeepRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirections to the client, whose next request is then checked like any other."""

    def redirect_request(self, *_: object) -> None:
        return None


_opener = urllib.request.build_opener(_KeepRedirects)


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `servers` are the host names that may be asked."""

    protocol_version = "HTTP/1.1"
    servers: frozenset[str] = frozenset()

    def do_GET(self) -> None:
        if not self._allowed(urlsplit(self.path).hostname):
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        request = urllib.request.Request(self.path, headers=headers, method=self.command)  # noqa: S310
        try:
            answer = _opener.open(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError as error:
            self.send_error(502, f"{self.path}: {error}")
            return
        with answer:
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            # Without a length only the connection's end tells where the body ends.
            self.close_connection = "Content-Length" not in answer.headers
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            shutil.copyfileobj(answer, self.wfile)

    do_HEAD = do_GET  # noqa: N815

    def do_CONNECT(self) -> None:
        name, _, port = self.path.rpartition(":")
        if not self._allowed(name):
            return
        try:
            server = socket.create_connection((name, int(port)), timeout=60)
        except OSError as error:
            self.send_error(502, f"{self.path}: {error}")
            return
        server.settimeout(None)
        self.send_response_only(200)
        self.end_headers()
        self.close_connection = True
        relay(self.connection, server)

    def _allowed(self, server: str | None) -> bool:
        if server in self.servers:
            return True
        self.send_error(403, f"{server} is not one of this machine's apt sources")
        return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


def main() -> None:
    namespace, *servers = sys.argv[1:]
    Handler.servers = frozenset(servers)
    listener = inside(Path(namespace), lambda: socket.create_server((GATEWAY, PORT)))
    _Server(listener).serve_forever()
