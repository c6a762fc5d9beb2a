#!/usr/bin/python
"""Ansible module: the folder of the models: room in it, what may go, and the former model."""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: vistral_model_store
short_description: Room for models, models that may go, and the model before the current one
description:
  - C(room) fails when files do not fit on the disk, with needed, free and what lies there.
  - C(prune) removes models that no release refers to beyond C(keep).
  - C(served) names the current release's model.
  - C(former) names the model of the last good release whose model differs from the current one's.
options:
  action:
    description: What to do.
    type: str
    required: true
    choices: [room, prune, served, former]
  root:
    description: Folder of the models.
    type: path
    required: true
  releases:
    description: Folder of the releases, whose vistrald.toml name the models in use.
    type: path
    required: true
  files:
    description: For room, the files to come, each with part and size.
    type: list
    elements: dict
    default: []
  reserve:
    description: For room, bytes that must stay free.
    type: int
    default: 0
  keep:
    description: For prune, models kept beside the current one; those of releases count.
    type: int
    default: 1
"""

EXAMPLES = r"""
- name: Remove old models
  vistral_model_store:
    action: prune
    root: /var/lib/vistral/models
    releases: /opt/vistral/releases
"""

RETURN = r"""
text:
  description: The answer for people.
  type: str
  returned: always
model:
  description: "For served and former: name, path, sha256, size, format, parts and release."
  type: dict
  returned: for served and former
removed:
  description: "For prune: names of removed files."
  type: list
  returned: for prune
"""

SPLIT = re.compile(r"-\d{5}-of-(\d{5})(?=\.gguf$)")


class RefusedError(Exception):
    """What the state of the host does not allow; the text names figures and remedy."""


@dataclass(frozen=True)
class Model:
    """One model on disk: its files, named by the first."""

    name: str
    files: tuple[Path, ...]
    size: int  # bytes
    placed_ns: int  # when it was verified last


def read_release(folder: Path) -> dict[str, Any]:
    """The table [model] of a release, empty where there is none to read."""
    try:
        table = tomllib.loads((folder / "vistrald.toml").read_text()).get("model", {})
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) and table.get("path") else {}


def users(releases: Path) -> dict[str, list[str]]:
    """Paths of (first) model files -> releases that refer to them, unfinished ones too."""
    found: dict[str, list[str]] = {}
    for folder in sorted(releases.glob("*")):
        if table := read_release(folder):
            found.setdefault(table["path"], []).append(folder.name)
    return found


def current(releases: Path) -> str:
    link = releases.parent / "current"
    return link.readlink().name if link.is_symlink() else ""


def models(root: Path) -> list[Model]:
    """All verified models, the newest first; a split one is complete or no model."""
    found = []
    for path in root.glob("*.gguf"):
        match = SPLIT.search(path.name)
        if match and "-00001-of-" not in path.name:
            continue
        count = int(match[1]) if match else 1
        names = [path.name.replace("-00001-of-", f"-{n:05}-of-") for n in range(1, count + 1)]
        files = [path.with_name(name) for name in names]
        stamps = [file.with_name(file.name + ".verified") for file in files]
        if all(file.exists() for file in [*files, *stamps]):
            size = sum(file.stat().st_size for file in files)
            placed = max(stamp.stat().st_mtime_ns for stamp in stamps)
            found.append(Model(path.name, tuple(files), size, placed))
    return sorted(found, key=lambda model: (model.placed_ns, model.name), reverse=True)


def listing(root: Path, releases: Path) -> str:
    """What lies in the folder, and which release needs it."""
    used = users(releases)
    lines = []
    for model in models(root):
        ids = used.get(str(model.files[0]))
        why = f"needed by {', '.join(ids)}" if ids else "needed by no release"
        lines.append(f"{model.name} {model.size / 1e9:.2f} GB ({why})")
    lines += [
        f"{part.name} {part.stat().st_blocks * 512 / 1e9:.2f} GB (unfinished download)"
        for part in sorted(root.glob("*.part"))
    ]
    return "; ".join(lines) or "nothing"


def room(root: Path, releases: Path, files: list[dict[str, Any]], reserve: int) -> dict[str, Any]:
    """Whether the files fit beside what is there; bytes that a .part has already are not needed.

    Raises RefusedError.
    """
    needed = 0
    for file in files:
        part = Path(file["part"])
        there = part.stat().st_blocks * 512 if part.exists() else 0
        needed += max(0, int(file["size"]) - there)
    # In check mode on a fresh host the folder is not there yet.
    folder = next(each for each in (root, *root.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    text = f"{needed / 1e9:.2f} GB are needed in {root}, {free / 1e9:.2f} GB are free"
    if needed + reserve > free:
        raise RefusedError(
            f"{text}, of which {reserve / 1e9:.2f} GB (model_disk_reserve_bytes) must stay: "
            f"{(needed + reserve - free) / 1e9:.2f} GB are missing. Nothing was fetched. "
            f"There lie: {listing(root, releases)}. Remove what no release needs, keep fewer "
            "releases (daemon_keep_releases) and models (model_keep), or enlarge the disk."
        )
    return {"changed": False, "needed": needed, "free": free, "text": text}


def prune(root: Path, releases: Path, keep: int, *, remove: bool) -> dict[str, Any]:
    """Removes models that no release refers to, the oldest, beyond `keep` beside the current."""
    used = users(releases)
    present = models(root)
    needed = [model for model in present if str(model.files[0]) in used]
    spare = [model for model in present if str(model.files[0]) not in used]
    # The current model is one of those needed and does not count.
    now = read_release(releases / current(releases)).get("path")
    others = len([model for model in needed if str(model.files[0]) != now])
    doomed = spare[max(0, keep - others) :]
    removed = []
    for model in doomed:
        for file in model.files:
            removed.append(file.name)
            if remove:
                file.with_name(file.name + ".verified").unlink(missing_ok=True)
                file.unlink()
    text = "; ".join(f"{model.name} {model.size / 1e9:.2f} GB" for model in doomed)
    return {
        "changed": bool(doomed),
        "removed": removed,
        "text": f"removed: {text or 'nothing'}; there lie: {listing(root, releases)}",
    }


def activation(folder: Path) -> int:
    try:
        return int((folder / "activation").read_text())
    except (OSError, ValueError):
        return 0


def describe(folder: Path) -> dict[str, Any]:
    """The model of a release, with its release."""
    table = read_release(folder)
    keys = ("name", "path", "sha256", "size")
    return {key: table[key] for key in keys} | {
        "format": table.get("format", "any"),
        "parts": table.get("parts", []),
        "release": folder.name,
    }


def served(releases: Path) -> dict[str, Any]:
    """The current release's model. Raises RefusedError without one."""
    now = current(releases)
    if not (now and read_release(releases / now)):
        raise RefusedError(f"There is no current release in {releases.parent}. Run site.yml.")
    model = describe(releases / now)
    size = model["size"] + sum(part["size"] for part in model["parts"])
    text = f"Served now: {model['name']}, {size / 1e9:.2f} GB, by release {now}."
    return {"changed": False, "model": model, "text": text}


def former(root: Path, releases: Path) -> dict[str, Any]:
    """The model of the good release that was current last and had another model.

    Raises RefusedError where there is none, or its files are gone.
    """
    left = served(releases)["model"]
    now, identity = left["release"], fingerprint(left)
    limit = activation(releases / now)
    earlier = [
        folder
        for folder in releases.glob("*")
        if (folder / "release.json").exists()
        and not (folder / "bad").exists()
        and 0 < activation(folder) < limit
        and fingerprint(read_release(folder)) not in {identity, ""}
    ]
    if not earlier:
        raise RefusedError(
            f"All good releases before {now} have its model {left['name']}: there is no former "
            "model to return to. Nothing was changed. Choose one by model_name and run "
            f"update_model.yml. In {root} lie: {listing(root, releases)}."
        )
    folder = max(earlier, key=activation)
    found = describe(folder)
    if not Path(found["path"]).exists():
        raise RefusedError(
            f"The former model {found['name']} (release {folder.name}) is gone: {found['path']} "
            "does not exist. Nothing was changed. Set model_name to it and run update_model.yml, "
            "which fetches it again."
        )
    return {
        "changed": False,
        "model": found,
        "left": left,
        "text": f"from {left['name']} back to {found['name']}, as in release {folder.name}",
    }


def fingerprint(table: dict[str, Any]) -> str:
    """All digests of a model, empty for none."""
    return " ".join([table.get("sha256", ""), *(p["sha256"] for p in table.get("parts", []))])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {
                "type": "str",
                "required": True,
                "choices": ["room", "prune", "served", "former"],
            },
            "root": {"type": "path", "required": True},
            "releases": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "dict", "default": []},
            "reserve": {"type": "int", "default": 0},
            "keep": {"type": "int", "default": 1},
        },
        supports_check_mode=True,
    )
    params = module.params
    root, releases = Path(params["root"]), Path(params["releases"])
    try:
        if params["action"] == "room":
            answer = room(root, releases, params["files"], params["reserve"])
        elif params["action"] == "prune":
            answer = prune(root, releases, params["keep"], remove=not module.check_mode)
        elif params["action"] == "served":
            answer = served(releases)
        else:
            answer = former(root, releases)
    except (OSError, RefusedError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
