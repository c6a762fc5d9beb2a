#!/usr/bin/python
"""Ansible module: which releases a host has, which one is current, and the way back.

It uses the host's own Python and nothing of a release, so that it works when a release does not.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: vistral_release
short_description: Switch between release directories by one symlink
description:
  - A release is a folder under C(root)/releases that has a release.json. C(root)/current is a
    symlink to one of them. Each activation gives the release the next number, which is the order
    that a rollback walks back; clocks play no part.
options:
  root:
    description: Folder of the releases.
    type: path
    required: true
  action:
    description: What to do.
    type: str
    required: true
    choices: [status, activate, rollback, mark, prune]
  id:
    description: The release to activate, or to mark bad.
    type: str
  reason:
    description: Why a rollback leaves the release, or why it is marked bad.
    type: str
  allow_none:
    description: Without a release before, end with none instead of refusing.
    type: bool
    default: false
  keep:
    description: Releases that prune leaves beside the current one.
    type: int
    default: 3
  unit:
    description: The service whose process tells which release runs.
    type: str
    default: vistrald.service
"""

EXAMPLES = r"""
- name: Make the release current
  vistral_release:
    root: /opt/vistral
    action: activate
    id: 0.1.0-1a2b3c4d5e-6f708192
"""

RETURN = r"""
current:
  description: The current release or none.
  type: str
  returned: always
previous:
  description: Where a rollback would lead.
  type: str
  returned: always
left:
  description: The release that was current before.
  type: str
  returned: on a switch
running:
  description: The release that the unit's process was started from, or none.
  type: str
  returned: always
restart:
  description: Whether the unit must be restarted to run the current release.
  type: bool
  returned: always
restart_socket:
  description: Whether the listening socket must be too.
  type: bool
  returned: always
removed:
  description: The releases that prune removed.
  type: list
  elements: str
  returned: on prune
releases:
  description: All releases in order of activation.
  type: list
  elements: dict
  returned: always
"""


class RefusedError(Exception):
    """A request that the state of the host does not allow; the text names the remedy."""


@dataclass(frozen=True)
class Release:
    """One complete release; `activation` is 0 until it was current once."""

    id: str
    activation: int
    bad: str


def read_text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n")
    partial.replace(path)


def load(root: Path) -> list[Release]:
    """All complete releases, in order of activation."""
    folders = [p.parent for p in (root / "releases").glob("*/release.json")]
    releases = [
        Release(f.name, int(read_text(f / "activation") or 0), read_text(f / "bad"))
        for f in folders
    ]
    return sorted(releases, key=lambda release: (release.activation, release.id))


def current(root: Path) -> str | None:
    link = root / "current"
    return link.readlink().name if link.is_symlink() else None


def before(releases: list[Release], identity: str | None) -> str | None:
    """The good release that was current last before the given one; None at the oldest."""
    limit = next((r.activation for r in releases if r.id == identity), None)
    if limit is None:
        return None
    earlier = [r for r in releases if 0 < r.activation < limit and not r.bad]
    return earlier[-1].id if earlier else None


def running(root: Path, cwd: Path | None) -> str | None:
    """The release that a process works in; the unit's WorkingDirectory leads through `current`.

    Compared by inode: the path that /proc shows of a process in a mount namespace of its own
    depends on how that was made.
    """
    if cwd is None:
        return None
    folders = (root / "releases").glob("*")
    return next((folder.name for folder in folders if folder.samefile(cwd)), None)


def pending(root: Path, now: str | None, runs: str | None) -> dict[str, bool]:
    """What has to be restarted, from what really runs.

    Asked of the process and not remembered from the switch, so that a run that was cut off between
    the switch and the restart is completed by the next. Where nothing runs, nobody is served by
    the socket, and restarting it too is the safe answer.
    """
    if now is None:
        return {"restart": False, "restart_socket": False}
    if runs is None:
        return {"restart": True, "restart_socket": True}
    texts = [read_text(root / "releases" / name / "vistrald.socket") for name in (runs, now)]
    return {"restart": runs != now, "restart_socket": texts[0] != texts[1]}


def switch(root: Path, identity: str | None) -> dict[str, Any]:
    """Points `current` to a release, or removes it; one rename, so there is no moment without."""
    left = current(root)
    if identity is None:
        (root / "current").unlink(missing_ok=True)
    else:
        partial = root / ".current"
        partial.unlink(missing_ok=True)
        partial.symlink_to(Path("releases") / identity)
        partial.replace(root / "current")
    return {"changed": left != identity, "left": left}


def activate(root: Path, identity: str) -> dict[str, Any]:
    """Makes a complete release the current one and clears a mark that it is bad.

    Raises RefusedError when there is no such release.
    """
    releases = load(root)
    if identity not in [release.id for release in releases]:
        raise RefusedError(
            f"There is no complete release {identity} in {root}/releases "
            f"(there are: {', '.join(r.id for r in releases) or 'none'}). "
            "Run site.yml to install it."
        )
    folder = root / "releases" / identity
    (folder / "bad").unlink(missing_ok=True)
    if current(root) != identity:
        # The number first: after an interruption here, the old release is still current and has
        # a smaller number, so that the way back is unchanged.
        write_text(folder / "activation", str(max(r.activation for r in releases) + 1))
    return switch(root, identity)


def rollback(root: Path, reason: str, *, allow_none: bool) -> dict[str, Any]:
    """Marks the current release bad and returns to the one before it.

    Raises RefusedError when nothing is current, or, unless `allow_none`, when none is before it.
    """
    left = current(root)
    if left is None:
        raise RefusedError(
            f"There is no current release in {root}; nothing to roll back. Run site.yml."
        )
    target = before(load(root), left)
    if target is None and not allow_none:
        raise RefusedError(
            f"{left} is the oldest release in {root}: there is none to roll back to. "
            "Nothing was changed. Deploy a mended one with site.yml."
        )
    # Marked first: after an interruption here a second rollback completes this one.
    write_text(root / "releases" / left / "bad", " ".join(reason.split()))
    return switch(root, target)


def mark(root: Path, identity: str, reason: str) -> dict[str, Any]:
    """Marks a release bad that is not current. Raises RefusedError."""
    if identity == current(root) or identity not in [release.id for release in load(root)]:
        raise RefusedError(f"{identity} is current, or no release in {root}: it is not marked bad.")
    write_text(root / "releases" / identity / "bad", " ".join(reason.split()))
    return {"changed": True}


def prune(root: Path, keep: int, *, remove: bool) -> dict[str, Any]:
    """Removes old releases and unfinished ones; the current one and its way back always stay."""
    releases = load(root)
    now = current(root)
    others = [release for release in releases if release.id != now]
    kept = {now, before(releases, now), *(r.id for r in (others[-keep:] if keep else []))}
    complete = [r.id for r in releases]
    unfinished = {p.name for p in (root / "releases").glob("*") if p.name not in complete}
    doomed = [*(name for name in complete if name not in kept), *sorted(unfinished)]
    if remove:
        for identity in doomed:
            # Without release.json a half-removed folder is no release any more.
            (root / "releases" / identity / "release.json").unlink(missing_ok=True)
            shutil.rmtree(root / "releases" / identity)
    return {"changed": bool(doomed), "removed": doomed}


def run(params: dict[str, Any], cwd: Path | None, *, check_mode: bool) -> dict[str, Any]:
    """Does what is asked; `cwd` is the working directory of the unit's process, if it has one."""
    root, action = Path(params["root"]), params["action"]
    if action == "prune":
        answer = prune(root, params["keep"], remove=not check_mode)
    elif action == "status":
        answer = {"changed": False}
    elif check_mode:
        answer = {"changed": True, "left": current(root)}
    elif action == "activate":
        answer = activate(root, params["id"])
    elif action == "mark":
        answer = mark(root, params["id"], params["reason"])
    else:
        answer = rollback(root, params["reason"], allow_none=params["allow_none"])
    releases, now, runs = load(root), current(root), running(root, cwd)
    return (
        answer
        | pending(root, now, runs)
        | {
            "current": now,
            "running": runs,
            "previous": before(releases, now),
            "releases": [asdict(release) for release in releases],
        }
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "action": {
                "type": "str",
                "required": True,
                "choices": ["status", "activate", "rollback", "mark", "prune"],
            },
            "id": {"type": "str"},
            "reason": {"type": "str"},
            "allow_none": {"type": "bool", "default": False},
            "keep": {"type": "int", "default": 3},
            "unit": {"type": "str", "default": "vistrald.service"},
        },
        required_if=[
            ("action", "activate", ["id"]),
            ("action", "rollback", ["reason"]),
            ("action", "mark", ["id", "reason"]),
        ],
        supports_check_mode=True,
    )
    show = ["systemctl", "show", module.params["unit"], "--property=MainPID", "--value"]
    pid = module.run_command(show)[1].strip() or "0"
    cwd = Path("/proc", pid, "cwd")
    try:
        where = cwd if cwd.exists() else None
        module.exit_json(**run(module.params, where, check_mode=module.check_mode))
    except (OSError, RefusedError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
