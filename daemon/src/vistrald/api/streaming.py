"""From an engine stream to an HTTP answer, whole or in server-sent events.

While an answer is waited for, the client's socket is looked at: a request whose client has left is
cancelled at once, also where nothing would be written to it for a while.
"""

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flask import Response

from vistrald.api.errors import ApiError, shutting_down
from vistrald.api.request_log import RequestRecord
from vistrald.engine.sequence import Result, Stream

LOOK_SECONDS = 0.1
PING_SECONDS = 2.0


class ClientGoneError(Exception):
    """Nobody is there to read the answer."""


def peer(environ: dict[str, Any]) -> socket.socket | None:
    """The client's socket, where the server is gunicorn."""
    return environ.get("gunicorn.socket")


def collect(
    stream: Stream, client: socket.socket | None, record: RequestRecord
) -> tuple[str, Result]:
    """The whole answer, up to its last full sentence where the deadline ended it.

    Raises StreamError, ApiError (client gone, service stopping).
    """
    record.stream = stream
    try:
        text = "".join(_watched(stream, client))
    except ClientGoneError:
        # nginx's status for it; nobody reads it but the log
        raise ApiError(499, "client_gone", "the client closed the connection", "-") from None
    result = ended(stream)
    return text[: result.complete_chars], result


def respond(
    stream: Stream,
    client: socket.socket | None,
    record: RequestRecord,
    events: Callable[[Iterable[str]], Iterator[str]],
) -> Response:
    """Server-sent events; `events` makes them from text pieces ("" where nothing came)."""
    record.stream = stream

    def generate() -> Iterator[str]:
        try:
            yield from events(_pinged(_watched(stream, client)))
        except ClientGoneError:
            return
        finally:
            # Also when the server closes the generator because writing failed.
            if not stream.ended:
                stream.abandon()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Response(generate(), mimetype="text/event-stream", headers=headers)


def ended(stream: Stream) -> Result:
    """The result of a stream read to its end. Raises ApiError if the service cancelled it."""
    result = stream.result
    if result is None or result.finish_reason == "cancelled":
        raise shutting_down()
    return result


def _watched(stream: Stream, client: socket.socket | None) -> Iterator[str]:
    for piece in stream.poll(LOOK_SECONDS):
        if client and _closed(client):
            stream.abandon()
            raise ClientGoneError
        yield piece


def _pinged(pieces: Iterable[str]) -> Iterator[str]:
    """Lets "" through only every PING_SECONDS."""
    last = time.monotonic()
    for piece in pieces:
        if piece or time.monotonic() - last >= PING_SECONDS:
            last = time.monotonic()
            yield piece


def _closed(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
