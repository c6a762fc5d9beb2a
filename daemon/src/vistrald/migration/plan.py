"""The plan that an administrator reads and signs: JSON for machines, Markdown and HTML of it."""

import os
import shlex
import tomllib
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vistrald.migration.changes import Change, diff
from vistrald.migration.finding import Finding, Language, shown
from vistrald.migration.prepare import SPARE_BYTES
from vistrald.migration.scan import Scan

# Measured: the scan and 44 steps take 0.7 s on two cores with an SSD; a slow disk takes longer.
SECONDS_PER_CHANGE = 0.05


def make_plan(  # noqa: PLR0913 (all that a plan states)
    scan: Scan,
    changes: Sequence[Change],
    failed: Iterable[Finding],
    *,
    archive: Path,
    host: dict[str, Any],
    made: datetime,
    language: Language = "ru",
    model_folders: Sequence[Path] = (),
) -> dict[str, Any]:
    """Everything the plan says, ready for JSON; texts are in `language`."""
    texts = _data("plan_texts")
    words = texts[language]
    findings = sorted([*scan.findings, *failed])
    resources = _data("resources")
    needed = sum(len(each.old) + len(each.new) for each in changes) + SPARE_BYTES
    steps = _steps(texts["step"], changes, scan.root, archive, model_folders, language)
    return {
        "language": language,
        "application": shown(str(scan.root)),
        "made": made.isoformat(sep=" ", timespec="minutes"),
        "host": host,
        "resources": resources,
        "warnings": _warnings(words, host, resources, needed),
        "findings": [each.as_dict(language) for each in findings],
        "components": _components(findings, language),
        "incompatibilities": _incompatibilities(findings, host, resources, language),
        "decisions": [*_decisions(findings, language), words["url_decision"]],
        "changes": [_change(each, scan.root) for each in changes],
        "space": {"freed_bytes": sum(scan.models.values()), "archive_bytes": needed},
        "steps": steps,
        "minutes": sum(step["minutes"] for step in steps),
        "minutes_down": sum(step["minutes"] for step in steps if step["down"]),
        "rollback": f"vistrald migrate rollback {shlex.quote(str(scan.root))}",
    }


def write_plan(plan: dict[str, Any], folder: Path) -> list[Path]:
    """plan.md and plan.html in `folder`. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in ("plan.md", "plan.html"):
        path = folder / name
        path.write_text(render(plan, name), encoding="utf-8")
        written.append(path)
    return written


def render(plan: dict[str, Any], name: str) -> str:
    environment = Environment(
        loader=PackageLoader("vistrald.migration", "templates"),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["gb"] = lambda size: f"{size / 1e9:.2f}"
    # A bar or a line end would break the table's row.
    environment.filters["cell"] = lambda text: " ".join(text.split()).replace("|", "\\|")
    language = plan["language"]
    words = _data("plan_texts")[language]
    keys = {"file": "file_gb", "memory_gb": "memory_gb", "parameters": "parameters_billion"}
    keys |= {"context": "context_tokens", "format": "format"}
    keys |= {"where": f"where_{language}", "source": f"source_{language}"}
    rows = [(words[label], key) for label, key in keys.items()]
    kinds = {"create": words["created"], "delete": words["deleted"], "move": words["moved"]}
    template = environment.get_template(f"{name}.j2")
    return template.render(plan=plan, t=words, resource_rows=rows, change_words=kinds)


def _steps(  # noqa: PLR0913, PLR0917
    steps: list[dict[str, Any]],
    changes: Sequence[Change],
    root: Path,
    archive: Path,
    model_folders: Sequence[Path],
    language: Language,
) -> list[dict[str, Any]]:
    places = {
        "application": shlex.quote(str(root)),
        "archive": shlex.quote(str(archive)),
        "models": "".join(f" --models {shlex.quote(str(each))}" for each in model_folders),
    }
    apply_minutes = max(1, round(len(changes) * SECONDS_PER_CHANGE / 60))
    return [
        {
            "title": step[f"title_{language}"],
            "command": step.get(f"command_{language}", step["command"]).format(**places),
            "check": step[f"check_{language}"].format(**places),
            "minutes": step["minutes"] or apply_minutes,
            "down": step["down"],
        }
        for step in steps
    ]


def _warnings(
    words: dict[str, str], host: dict[str, Any], resources: dict[str, Any], needed: int
) -> list[str]:
    warnings = []
    disk = needed / 1e9 + resources["new"]["file_gb"]
    if host["disk_free_bytes"] / 1e9 < disk:
        free = f"{host['disk_free_bytes'] / 1e9:.1f}"
        warnings.append(words["no_disk"].format(free=free, needed=f"{disk:.1f}"))
    # Part of 16 GB is the firmware's and the kernel's: what counts is room for the cap.
    if host["memory_bytes"] / 1e9 < resources["host"]["cap_gb"] + 1:
        memory = f"{host['memory_bytes'] / 1e9:.1f}"
        limits = {"cap": resources["host"]["cap_gb"], "host": resources["host"]["memory_gb"]}
        warnings.append(words["no_memory"].format(memory=memory, **limits))
    return warnings


def _components(findings: Iterable[Finding], language: Language) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for each in findings:
        row = each.as_dict(language) | {"place": each.place}
        found.setdefault(each.component, []).append(row)
    return found


def _incompatibilities(
    findings: Iterable[Finding], host: dict[str, Any], resources: dict[str, Any], language: str
) -> list[dict[str, str]]:
    present = {each.kind for each in findings}
    old, new = resources["old"], resources["new"]
    both = old["memory_gb"] + new["memory_gb"]
    facts = {
        "machine": host["machine"],
        "mlx_gb": resources["mlx"]["file_gb"],
        "host_memory": round(host["memory_bytes"] / 1e9, 1),
        "old_memory": old["memory_gb"],
        "new_memory": new["memory_gb"],
        "new_name": new["name"],
        "new_gb": new["file_gb"],
        "old_format": old["format"],
        "new_format": new["format"],
        "old_context": old["context_tokens"],
        "new_context": new["context_tokens"],
    }
    return [
        {
            "problem": item[f"problem_{language}"].format(**facts),
            "solution": item[f"solution_{language}"].format(**facts),
        }
        for item in _data("incompatibilities")["item"]
        if (not item.get("kinds") or present & set(item["kinds"]))
        and not (item.get("scarce_memory") and both < host["memory_bytes"] / 1e9)
    ]


def _decisions(findings: Iterable[Finding], language: Language) -> list[str]:
    return [
        f"{each.place}: {each.todo(language)}" + (f" ({shown(each.what)})" if each.what else "")
        for each in findings
        if each.person
    ]


def _change(change: Change, root: Path) -> dict[str, Any]:
    path = os.path.relpath(change.path, root) if change.path.is_relative_to(root) else change.path
    return {
        "path": shown(str(path)),
        "kind": change.kind,
        "bytes": change.size,
        "diff": shown(diff(change, root)),
    }


def _data(name: str) -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
