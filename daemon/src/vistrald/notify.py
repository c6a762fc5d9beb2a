"""systemd's notification protocol, see sd_notify(3)."""

import socket


class Notifier:
    """Sends state lines to the socket systemd gave us; without one every call does nothing."""

    def __init__(self, address: str | None) -> None:
        # A leading @ names a socket in the abstract namespace.
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    def send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto("\n".join(lines).encode(), self._address)

    def ready(self, status: str) -> None:
        self.send("READY=1", f"STATUS={status}")

    def progress(self, status: str, allow_seconds: int) -> None:
        """Shows `status` in systemctl; the next sign of life may take `allow_seconds`."""
        self.send(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={allow_seconds * 1_000_000}")

    def stopping(self, allow_seconds: int) -> None:
        self.send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={allow_seconds * 1_000_000}")
