"""A file on a server, of which only the parts that are asked for are fetched."""

from __future__ import annotations

import json
import re
from types import TracebackType
from typing import Any, Self

import requests

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
MOST_JSON = 2**20  # bytes of a config.json; real ones take one or two thousand


class RemoteError(Exception):
    """The server did not give what was asked for; the message says what to do."""


class HttpSource:
    """Bytes by offset over range requests. Raises RemoteError."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Asks for the first byte, which tells the size; `token` goes into Authorization."""
        self.name = url
        self._session = requests.Session()
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        with self._get(0, 1) as response:
            content_range = response.headers.get("Content-Range", "")
            found = re.fullmatch(r"bytes 0-0/(\d+)", content_range)
            if not found:
                raise RemoteError(
                    f"{url}: Content-Range is {content_range!r}, expected the whole size; "
                    "download the file and name its path"
                )
            self.size = int(found[1])

    def read_at(self, offset: int, count: int) -> bytes:
        count = min(count, self.size - offset)
        if count <= 0:
            return b""
        with self._get(offset, count) as response:
            data = response.raw.read(count)
        if len(data) < count:
            raise RemoteError(
                f"{self.name}: the connection ended after {len(data)} of {count} bytes; try again"
            )
        return bytes(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._session.close()

    def _get(self, offset: int, count: int) -> requests.Response:
        headers = {"Range": f"bytes={offset}-{offset + count - 1}", "Accept-Encoding": "identity"}
        try:
            response = self._session.get(self.name, headers=headers, stream=True, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise RemoteError(f"{self.name}: {error}; check the address and the proxy") from None
        if response.status_code == requests.codes.partial_content:
            return response
        response.close()
        if response.ok:
            size = response.headers.get("Content-Length", "an unknown number of")
            raise RemoteError(
                f"{self.name}: the server answered {response.status_code} with the whole file "
                f"({size} bytes) instead of 206 with a part of it, so nothing was read; use a "
                "server that supports range requests, or download the file and name its path"
            )
        raise RemoteError(
            f"{self.name}: the server answered {response.status_code} {response.reason}; check the "
            "address, and for a closed repository set HF_TOKEN"
        )


def get_json(url: str, token: str | None = None) -> Any:
    """A small JSON document. Raises RemoteError."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            data = response.raw.read(MOST_JSON + 1, decode_content=True)
    except requests.RequestException as error:
        raise RemoteError(f"{url}: {error}; check the address and the proxy") from None
    if len(data) > MOST_JSON:
        raise RemoteError(f"{url} is larger than {MOST_JSON} bytes: it is no config.json")
    try:
        return json.loads(data)
    except ValueError as error:
        raise RemoteError(f"{url} is not JSON: {error}; name a config.json or a GGUF") from None
