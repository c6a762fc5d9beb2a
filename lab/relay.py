"""Sockets in other network namespaces, and passing bytes between two of them.

A socket belongs for ever to the namespace in which it was made, and a namespace is entered by one
thread at a time: so a short thread makes the socket and hands it to a process that stays outside.
"""

import contextlib
import ctypes
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.command import say
from lab.errors import LabError

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def inside(namespace: Path, make: Callable[[], socket.socket]) -> socket.socket:
    """Return the socket that `make` makes in the namespace; this thread does not enter it."""

    def enter_and_make() -> socket.socket:
        with namespace.open() as file:
            if _libc.setns(file.fileno(), _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(namespace))
        return make()

    # The pool's one thread ends with the call, so no other work ever runs in the namespace.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter_and_make).result()


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways, as soon as they come, until both sides have finished; close both."""
    back = threading.Thread(target=_pass_on, args=(other, one), daemon=True)
    back.start()
    _pass_on(one, other)
    back.join()
    one.close()
    other.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side broke off: the other learns it at once instead of waiting for more.
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Forward:
    """A listening port on this machine's loopback whose connections go to a port of a host.

    Serves from threads of this process until `close`. `local_port` 0 takes any free port.
    """

    def __init__(self, namespace: Path, address: str, port: int, local_port: int = 0) -> None:
        self._namespace = namespace
        self._target = (address, port)
        try:
            self._listener = socket.create_server(("127.0.0.1", local_port))
        except OSError as error:
            raise LabError(
                f"cannot listen on 127.0.0.1:{local_port}: {os.strerror(error.errno or 0)};"
                f" choose another port, or see who has it: ss -ltnp sport = {local_port}"
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # A plain close would leave the accepting thread waiting for ever.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> "Forward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = inside(
                self._namespace, lambda: socket.create_connection(self._target, timeout=10)
            )
        except OSError:
            client.close()
            return
        server.settimeout(None)
        relay(client, server)


def main() -> None:
    """Serve one forward as a process of its own: NAMESPACE_FILE ADDRESS PORT LOCAL_PORT."""
    namespace, address, port, local_port = sys.argv[1:]
    try:
        forward = Forward(Path(namespace), address, int(port), int(local_port))
    except LabError as error:
        sys.exit(str(error))
    say(forward.url)
    with forward:
        threading.Event().wait()
