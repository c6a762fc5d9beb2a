"""Everything in an application's tree that depends on the old model. Reads, changes nothing."""

import ast
import os
import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistrald.migration import llama_uses, text_review
from vistrald.migration.categories import category
from vistrald.migration.finding import Finding, Language, shown
from vistrald.migration.fixes import Fixes
from vistrald.migration.imports import Project
from vistrald.migration.python_review import PythonReview
from vistrald.migration.services import CLIENT_MODULE, PythonFile, taint
from vistrald.migration.source import Source, decode
from vistrald.migration.tree import Tree, read_tree

_SCRIPT_SUFFIXES = (".sh", ".bash", ".bat", ".cmd", ".ps1", ".py")
_SCRIPT = re.compile(
    r"configure_model\b|(download|install|setup|convert|quantize|fetch|get|test|check)\w*[-_]saiga"
    r"|saiga[-_]?\w*(download|install|setup|convert|quantize|fetch)",
    re.IGNORECASE,
)
# A script that also starts the application does more than to prepare a model.
_STARTS = re.compile(r"\b(uvicorn|gunicorn|systemctl|docker|alembic|npm)\b")
_OLD_MODEL = re.compile(r"saiga", re.IGNORECASE)
_NEW_MODEL = re.compile(r"vistral", re.IGNORECASE)


@dataclass
class Scan:
    root: Path
    findings: list[Finding] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    python: dict[str, Fixes] = field(default_factory=dict)  # files to edit
    texts: dict[str, str] = field(default_factory=dict)  # new contents of the others
    removed: set[str] = field(default_factory=set)
    clients: dict[str, str] = field(default_factory=dict)  # new file: the one that it replaces
    models: dict[str, int] = field(default_factory=dict)  # to be moved; bytes
    not_read: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    files: int = 0

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(each.action for each in self.findings))

    def as_dict(self, language: Language = "en") -> dict[str, Any]:
        return {
            "application": shown(str(self.root)),
            "files": self.files,
            "findings": [each.as_dict(language) for each in self.findings],
            "by_action": self.counts,
            "for_a_person": sum(each.person for each in self.findings),
            "model_bytes": sum(self.models.values()),
            "not_read": {shown(path): why for path, why in self.not_read.items()},
            "skipped_folders": [shown(path) for path in self.skipped],
        }


def scan(root: Path, model_folders: Iterable[Path] = ()) -> Scan:
    """`model_folders`: where models lie outside of the tree; all their .gguf files are old ones.

    Raises NotADirectoryError.
    """
    root = root.resolve()
    tree = read_tree(root)
    result = Scan(root, not_read=tree.not_read, skipped=tree.skipped, files=len(tree.names))
    result.sources = {path: decode(data) for path, data in tree.texts.items()}
    kinds = {path: category(path, source.text) for path, source in result.sources.items()}
    result.removed = {path for path in kinds if _is_script(path, result.sources[path].text)}
    _scan_python(result, tree, [path for path, kind in kinds.items() if kind == "python"])
    scripts = {posixpath.basename(path) for path in result.removed}
    for path, kind in kinds.items():
        text = result.sources[path].text
        if path in result.removed and kind != "python":
            result.findings.append(Finding(path, 0, "script", "delete", posixpath.basename(path)))
        elif kind != "python":
            reviewed = text_review.review(path, kind, text, scripts)
            result.findings += reviewed.findings
            if reviewed.text != text:
                result.texts[path] = reviewed.text
        if not result.sources[path].is_unicode:
            result.findings.append(Finding(path, 0, "encoding", "report"))
    _scan_models(result, tree, model_folders)
    _scan_links(result, tree)
    result.findings += [
        Finding(path, 0, "unreadable", "report", why, person=True)
        for path, why in tree.not_read.items()
    ]
    result.findings.sort()
    return result


def _is_script(path: str, text: str) -> bool:
    name = posixpath.basename(path)
    if not name.lower().endswith(_SCRIPT_SUFFIXES) or name.startswith("test_"):
        return False
    return bool(_SCRIPT.search(name)) and not _STARTS.search(text)


def _scan_python(result: Scan, tree: Tree, paths: list[str]) -> None:
    files: dict[str, PythonFile] = {}
    for path in paths:
        if path in result.removed:
            result.findings.append(Finding(path, 0, "script", "delete", posixpath.basename(path)))
        elif posixpath.basename(path) != f"{CLIENT_MODULE}.py":
            text = result.sources[path].text
            try:
                with warnings.catch_warnings():  # invalid escapes are the application's business
                    warnings.simplefilter("ignore")
                    files[path] = PythonFile(path, text, ast.parse(text))
            except (SyntaxError, ValueError, RecursionError) as error:
                line = getattr(error, "lineno", None) or 1
                found = Finding(path, line, "unparsable", "report", str(error)[:120], person=True)
                result.findings.append(found)
    project = Project(files, tree.names)
    for path, file in files.items():
        service = project.services.get(path)
        reviewed = PythonReview(project, file)
        reviewed.review()
        findings = reviewed.findings
        if service and service.goes:
            result.removed.add(path)
            if service.fate == "replace":
                result.clients[service.client] = path
        elif _is_only_for_llama(result, tree, file) and not service:
            result.removed.add(path)
            findings = [
                Finding(each.file, each.line, each.kind, "delete", each.what) for each in findings
            ]
            findings.insert(0, Finding(path, 0, "service-module", "delete", path))
        elif reviewed.fixes:
            result.python[path] = reviewed.fixes
        result.findings += findings
    # A service that stays in part still gets its client, for the names that the client has.
    for service in project.services.values():
        if service.client not in result.clients:
            result.clients[service.client] = service.file.path


def _is_only_for_llama(result: Scan, tree: Tree, file: PythonFile) -> bool:
    """Whether a module is nothing without llama_cpp and nobody imports it."""
    # A lazy import may have a way to do without; one at the top has none.
    needed = any(not use.safe and use.node in file.tree.body for use in llama_uses.find(file))
    if file.is_test or not needed:
        return False
    tainted, _ = taint(file.tree, set())
    defined = [
        node
        for node in file.tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    if not defined or any(node not in tainted for node in defined):
        return False
    stem = posixpath.basename(file.path).removesuffix(".py").encode()
    word = re.compile(rb"(?<![\w])" + re.escape(stem) + rb"(?![\w])")
    # Importers need not mention the old model themselves, so that all Python files are asked.
    return not any(
        word.search(_bytes(result.root / path))
        for path in tree.names
        if path.endswith(".py") and path != file.path
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _scan_models(result: Scan, tree: Tree, folders: Iterable[Path]) -> None:
    named = {posixpath.basename(path) for path in _named_models(result)}
    old = {
        path for path in tree.models if _OLD_MODEL.search(path) or posixpath.basename(path) in named
    }
    homes = {posixpath.dirname(path) for path in old}
    for path, size in tree.models.items():
        if not _NEW_MODEL.search(path) and (path in old or posixpath.dirname(path) in homes):
            result.models[path] = size
        else:
            result.findings.append(Finding(path, 0, "other-model-file", "report", size=size))
    for folder in folders:
        for found in sorted(folder.resolve().rglob("*")):
            inside = found.is_relative_to(result.root)
            if found.suffix.lower() == ".gguf" and not found.is_symlink() and not inside:
                result.models[str(found)] = found.stat().st_size
    result.findings += [
        Finding(path, 0, "model-file", "delete", posixpath.basename(path), size=size)
        for path, size in result.models.items()
    ]


def _named_models(result: Scan) -> Iterable[str]:
    """Files that SAIGA_MODEL_PATH was set to, whatever they are called."""
    for source in result.sources.values():
        for match in re.finditer(r"SAIGA_MODEL_PATH[^\n]*?([\w./-]+\.gguf)", source.text):
            yield match[1]


def _scan_links(result: Scan, tree: Tree) -> None:
    gone = {os.path.realpath(result.root / path) for path in (*result.removed, *result.models)}
    for path, target in tree.links.items():
        real = os.path.realpath(result.root / path)
        inside = Path(real).is_relative_to(result.root)
        if real in gone and inside:
            result.removed.add(path)
            result.findings.append(Finding(path, 0, "model-link", "delete", target))
        elif not inside and text_review.MENTION.search(f"{path} {target}"):
            result.findings.append(Finding(path, 0, "outside-link", "report", target, person=True))
