"""Disposable Debian 12 hosts with systemd as PID 1, for the demo and the tests. See README.md."""

from lab.errors import LabError
from lab.host import Host
from lab.lab import Lab
from lab.relay import Forward

__all__ = ["Forward", "Host", "Lab", "LabError"]
