#!/usr/bin/python
"""Ansible module: starts the fetching of a file on the host, and tells how far it is."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: vistral_fetch
short_description: Fetch a large file in the background, resumed, and tell its progress
description:
  - Runs the program vistral_fetch.py as a transient unit, so that neither a broken SSH connection
    nor an interrupted playbook ends it; the next call finds it at work. The action plugin of the
    same name calls this module until the file is there, and prints the progress.
  - The file is not verified; that is C(vistral_model)'s.
options:
  program:
    description: Where vistral_fetch.py lies on the host.
    type: path
    required: true
  part:
    description: The file to be made; what it has already is kept.
    type: path
    required: true
  size:
    description: Its size in bytes.
    type: int
    required: true
  urls:
    description: Its addresses, in the order in which they are tried.
    type: list
    elements: str
    required: true
  token:
    description: Sent as a bearer token to C(token_origins), to nobody else.
    type: str
    default: ""
  token_origins:
    description: Origins such as https://huggingface.co.
    type: list
    elements: str
    default: []
  proxy:
    description: HTTP proxy for everything; empty for none.
    type: str
    default: ""
  limit:
    description: Most bytes per second, as in 20M; 0 for none.
    type: str
    default: "0"
  connections:
    description: Connections at once.
    type: int
    default: 4
  retries:
    description: Rounds over all addresses without a new byte, before it gives up.
    type: int
    default: 5
  wait:
    description: Seconds to wait for the end before telling the progress.
    type: int
    default: 3
  watch_only:
    description: Tell the progress of what runs; start nothing.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Fetch a file
  vistral_fetch:
    program: /usr/local/lib/vistral/vistral_fetch.py
    part: /var/lib/vistral/models/m.gguf.part
    size: 12800000000
    urls: ["https://example.com/m.gguf"]
"""

RETURN = r"""
state:
  description: One of running, done and failed.
  type: str
  returned: always
unit:
  description: The transient unit.
  type: str
  returned: always
done:
  description: Bytes on disk.
  type: int
  returned: always
"""

RUN = Path("/run/vistral-fetch")
JOB_KEYS = (
    *("urls", "part", "size", "token", "token_origins", "proxy", "limit", "connections"),
    "retries",
)


def sandbox(folder: Path) -> list[str]:
    """Properties of the unit: it talks to strangers, so it may write to two folders only."""
    return [
        "Type=exec",
        "Nice=10",
        "IOSchedulingClass=idle",
        "ProtectSystem=strict",
        f"ReadWritePaths={folder} {RUN}",
        "ProtectHome=true",
        "PrivateTmp=true",
        "PrivateDevices=true",
        "NoNewPrivileges=true",
        "CapabilityBoundingSet=",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "MemoryMax=512M",
        "MemorySwapMax=0",
    ]


def command(unit: str, program: str, job: Path, part: Path) -> list[str]:
    """The job file becomes a credential, which only this unit sees and which ends with it."""
    properties = [*sandbox(part.parent), f"LoadCredential=job:{job}"]
    return [
        *("systemd-run", "--quiet", "--collect", f"--unit={unit}"),
        f"--description=Vistral: fetches {part.name}",
        *(f"--property={each}" for each in properties),
        *("/usr/bin/python3", program, f"/run/credentials/{unit}/job", str(RUN / f"{unit}.json")),
    ]


def start(module: AnsibleModule, unit: str) -> None:
    """Starts the unit; its job lies on disk (in memory, for root alone) until systemd has it."""
    params = module.params
    RUN.mkdir(mode=0o755, exist_ok=True)
    (RUN / f"{unit}.json").unlink(missing_ok=True)
    for left in RUN.glob("job-*"):  # of a call that was killed on the way
        left.unlink()
    handle, name = tempfile.mkstemp(dir=RUN, prefix="job-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({key: params[key] for key in JOB_KEYS}, file)
        argv = command(unit, params["program"], Path(name), Path(params["part"]))
        status, _, said = module.run_command(argv)
        if status != 0:
            module.fail_json(msg=f"systemd-run could not start {unit}: {said.strip()}")
    finally:
        Path(name).unlink()


def active(module: AnsibleModule, unit: str) -> bool:
    show = module.run_command(["systemctl", "is-active", unit])[1].strip()
    return show in {"active", "activating", "deactivating"}


def report(unit: str, *, runs: bool) -> dict[str, Any]:
    """What the unit wrote last."""
    file = RUN / f"{unit}.json"
    try:
        answer: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        answer = {"state": "running", "message": "", "done": 0, "note": "", "source": ""}
    if answer["state"] == "running" and not runs:
        answer |= {"state": "failed", "message": f"{unit} was stopped; run again to go on"}
    return answer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "part": {"type": "path", "required": True},
            "size": {"type": "int", "required": True},
            "urls": {"type": "list", "elements": "str", "required": True},
            "token": {"type": "str", "default": "", "no_log": True},
            "token_origins": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "proxy": {"type": "str", "default": "", "no_log": True},
            "limit": {"type": "str", "default": "0"},
            "connections": {"type": "int", "default": 4},
            "retries": {"type": "int", "default": 5},
            "wait": {"type": "int", "default": 3},
            "watch_only": {"type": "bool", "default": False},
        }
    )
    params = module.params
    unit = f"vistral-fetch-{Path(params['part']).name.removesuffix('.part')}.service"
    if not params["watch_only"] and not active(module, unit):
        start(module, unit)
    deadline = time.monotonic() + params["wait"]
    while runs := active(module, unit):
        if time.monotonic() > deadline:
            break
        time.sleep(0.3)
    answer = report(unit, runs=runs)
    module.exit_json(changed=answer["state"] == "done", unit=unit, **answer)


if __name__ == "__main__":
    main()
