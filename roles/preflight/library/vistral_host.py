#!/usr/bin/python
"""Ansible module: measures what preflight compares: memory, CPU flags, free space, listeners."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: vistral_host
short_description: Measure a host for the preflight checks
options:
  paths:
    description: Paths whose free space is asked.
    type: list
    elements: path
    required: true
  ports:
    description: TCP ports whose listeners are asked.
    type: list
    elements: int
    required: true
  socket_unit:
    description: The socket unit whose ports count as free.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Measure the host
  vistral_host:
    paths: [/var/lib/vistral]
    ports: [8080]
    socket_unit: vistrald.socket
"""

RETURN = r"""
memory_mb:
  description: RAM in MiB or the host's cgroup limit if smaller.
  type: int
  returned: always
cpu_flags:
  description: Flags of the first CPU.
  type: list
  elements: str
  returned: always
disk:
  description: Path and free bytes with what is deployed there.
  type: list
  elements: dict
  returned: always
listeners:
  description: Port and program of foreign listeners.
  type: list
  elements: dict
  returned: always
"""

# Where a container finds the limit of its own root control group, v2 and v1.
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory_bytes(meminfo: str, limits: list[str]) -> int:
    """RAM in bytes: MemTotal, or a smaller limit of the control group that a container is in."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    if total is None:
        raise ValueError("/proc/meminfo has no line MemTotal")
    return min([int(total[1]) * 1024, *(int(text) for text in limits if text.strip().isdigit())])


def cpu_flags(cpuinfo: str) -> list[str]:
    """Instruction sets of the first CPU in /proc/cpuinfo."""
    line = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return line[1].split() if line else []


def tree_bytes(path: Path) -> int:
    """Bytes that the files under a path take."""
    files = (p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(p.stat().st_blocks * 512 for p in files)


def free_bytes(path: Path) -> int:
    """Free space where the path is or would be, with what is already deployed in it.

    Without the second part a deployed host would fail on the model that it carries.
    """
    parent = path
    while not parent.exists():
        parent = parent.parent
    return shutil.disk_usage(parent).free + tree_bytes(path)


def own_ports(listen: str) -> set[int]:
    """Ports in `systemctl show --property=Listen`, as in `127.0.0.1:8080 (Stream)`."""
    return {int(port) for port in re.findall(r":(\d+) \(Stream\)", listen)}


def foreign_listener(port: int, ss: Callable[[int], str], own: set[int]) -> str:
    """The program that holds a port, empty when it is free or the daemon's own socket."""
    if port in own:
        return ""
    line = ss(port).strip()
    program = re.search(r'users:\(\("([^"]+)",pid=(\d+)', line)
    return f"{program[1]} (pid {program[2]})" if program else line


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "required": True},
            "ports": {"type": "list", "elements": "int", "required": True},
            "socket_unit": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )

    def output(*command: str) -> str:
        return str(module.run_command(list(command), check_rc=False)[1])

    def ss(port: int) -> str:
        return output("ss", "--no-header", "-ltnp", f"sport = :{port}")

    unit = module.params["socket_unit"]
    own = own_ports(output("systemctl", "show", unit, "--property=Listen", "--value"))
    holders = {port: foreign_listener(port, ss, own) for port in module.params["ports"]}
    limits = [path.read_text() for path in CGROUP_LIMITS if path.exists()]
    answer: dict[str, Any] = {
        "memory_mb": memory_bytes(Path("/proc/meminfo").read_text(), limits) >> 20,
        "cpu_flags": cpu_flags(Path("/proc/cpuinfo").read_text()),
        "disk": [{"path": p, "free": free_bytes(Path(p))} for p in module.params["paths"]],
        "listeners": [
            {"port": port, "program": holder} for port, holder in holders.items() if holder
        ],
    }
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
