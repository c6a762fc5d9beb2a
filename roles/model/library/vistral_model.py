#!/usr/bin/python
"""Ansible module: verifies a model file, and puts a fetched one in its place."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: vistral_model
short_description: Verify a model file; put a fetched one in its place
description:
  - Without C(part), says whether C(path) is the pinned file. A stamp beside the file (digest, size,
    inode, times) spares hashing 13 GB again while the file is untouched; without a valid stamp the
    file is hashed and the stamp written.
  - With C(part), verifies that file, renames it to C(path) and writes the stamp. A part that
    does not match is removed, so that the next run fetches it anew, and the module fails.
options:
  path:
    description: Where the verified file lies.
    type: path
    required: true
  part:
    description: A fetched file that is to become C(path).
    type: path
  sha256:
    description: Expected SHA-256.
    type: str
    required: true
  size:
    description: Expected size in bytes.
    type: int
    required: true
"""

EXAMPLES = r"""
- name: See whether the verified file is there
  vistral_model:
    path: /var/lib/vistral/models/m.gguf
    sha256: "{{ model_sha256 }}"
    size: 12800000000
"""

RETURN = r"""
verified:
  description: Whether C(path) is the pinned file.
  type: bool
  returned: always
reason:
  description: Why it is not.
  type: str
  returned: when it is not
"""

CHUNK = 1 << 22


def digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces of 4 MiB."""
    found = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(CHUNK):
            found.update(piece)
    return found.hexdigest()


def stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def identity(path: Path, sha256: str) -> dict[str, Any]:
    """What the stamp records. The change time cannot be set by hand: any write shows in it."""
    stat = path.stat()
    return {
        "sha256": sha256,
        "size": stat.st_size,
        "inode": stat.st_ino,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
    }


def stamped(path: Path, sha256: str) -> bool:
    try:
        return json.loads(stamp_path(path).read_text()) == identity(path, sha256)
    except (OSError, ValueError):
        return False


def mismatch(path: Path, sha256: str, size: int) -> str | None:
    """Why a file is not the pinned one, or None when it is. Hashes only what has the right size."""
    if not path.exists():
        return "the file is not there"
    if (found := path.stat().st_size) != size:
        return f"its size is {found} bytes, expected {size}"
    if (found_digest := digest(path)) != sha256:
        return f"its sha256 is {found_digest}, expected {sha256}"
    return None


def write_stamp(path: Path, sha256: str) -> None:
    partial = stamp_path(path).with_suffix(".partial")
    partial.write_text(json.dumps(identity(path, sha256)))
    partial.replace(stamp_path(path))


def verify(path: Path, sha256: str, size: int, *, write: bool) -> dict[str, Any]:
    """The answer about a file that should be in place."""
    if stamped(path, sha256):
        return {"changed": False, "verified": True}
    if reason := mismatch(path, sha256, size):
        return {"changed": False, "verified": False, "reason": reason}
    if write:
        write_stamp(path, sha256)
    return {"changed": True, "verified": True}


def install(part: Path, path: Path, sha256: str, size: int) -> dict[str, Any]:
    """Verifies a fetched file and puts it in place. Raises ValueError after removing a bad one."""
    if reason := mismatch(part, sha256, size):
        part.unlink(missing_ok=True)
        part.with_name(part.name + ".aria2").unlink(missing_ok=True)
        raise ValueError(
            f"{part}: {reason}. The file was removed and nothing was installed; run again to fetch "
            "it anew, leave out the mirror that sent it, or correct the pin (model_sha256, "
            "model_size_bytes or the catalogue's entry)."
        )
    part.chmod(0o644)
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    part.replace(path)
    write_stamp(path, sha256)
    return {"changed": True, "verified": True}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "part": {"type": "path"},
            "sha256": {"type": "str", "required": True},
            "size": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    path, sha256, size = (module.params[name] for name in ("path", "sha256", "size"))
    if module.params["part"] is None:
        module.exit_json(**verify(Path(path), sha256, size, write=not module.check_mode))
    if module.check_mode:
        module.exit_json(changed=True, verified=True)
    try:
        module.exit_json(**install(Path(module.params["part"]), Path(path), sha256, size))
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
