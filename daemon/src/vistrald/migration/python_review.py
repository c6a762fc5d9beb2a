"""What a Python file depends on of the old model, by syntax tree, and the fixes for it."""

import ast
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from vistrald.migration import llama_uses
from vistrald.migration.finding import Action
from vistrald.migration.fixes import ImportGroup
from vistrald.migration.imports import Target, absolute_path, module_path
from vistrald.migration.notes import Notes
from vistrald.migration.python_settings import SettingsReview
from vistrald.migration.requirements import is_requirement
from vistrald.migration.scopes import ImportNode, Variable
from vistrald.migration.services import CLIENT_MODULE, llama_aliases
from vistrald.migration.source import lines_of
from vistrald.migration.text_review import MENTION

_PROMPT = re.compile(r"<s>\s*<system>|<bot>|<s>(system|user|bot)\\n")


class PythonReview(Notes):
    """Reviews one file; findings and fixes are there afterwards."""

    def review(self) -> None:
        self.begin()
        self._llama()
        self._imports()
        SettingsReview(self).review()
        self._requirements()
        self._mentions()
        self.findings.sort()

    # --- llama_cpp -------------------------------------------------------------

    def _llama(self) -> None:
        for use in llama_uses.find(self.file):
            line, kept = use.node.lineno, use.node.lineno in self.untouched
            kind = "llama-dynamic-import" if use.dynamic else "llama-import"
            if self.service:
                left = self.service.fate == "leave"
                self.add(line, kind, "report" if left else "edit", use.what, person=left)
                continue
            self.add(line, kind, "edit" if use.safe else "report", use.what, person=not use.safe)
            if kept or not use.safe:
                continue
            if use.guard:
                self.fixes.tries.add(self.columns.start(use.guard))
            elif isinstance(use.node, (ast.Import, ast.ImportFrom)):
                gone = llama_aliases(use.node)
                rest = tuple((a.name, a.asname) for a in use.node.names if a not in gone)
                group = (ImportGroup(0, None, rest),) if rest else ()
                self.fixes.imports[self.columns.start(use.node)] = group

    # --- the services ----------------------------------------------------------

    def _imports(self) -> None:
        new_names: dict[int, str] = {}
        for variable in self.file.variables:
            if variable.imports and (new := self.project.new_name(self.file, variable)):
                new_names[id(variable)] = new
                self._rename(variable, new)
        by_statement: dict[ImportNode, list[tuple[ast.alias, Variable]]] = {}
        for variable in self.file.variables:
            for node, alias in variable.imports:
                by_statement.setdefault(node, []).append((alias, variable))
        for node, bound in by_statement.items():
            if all(self._is_pruned(variable) for _, variable in bound):
                self.fixes.imports[self.columns.start(node)] = ()
                for alias, _ in bound:
                    self.add(alias.lineno, "service-import", "edit", alias.name)
                continue
            self._import(node, {id(a): new_names.get(id(v), "") for a, v in bound})
        self._attributes()
        self._dynamic_services()

    def _is_pruned(self, variable: Variable) -> bool:
        """Whether an imported old service was only used by what goes away here."""
        prune = self.service is not None and self.service.fate == "prune"
        old = any(
            (target := self.project.target(self.file, node, alias)) and target.client
            for node, alias in variable.imports
        )
        used = any(name.lineno not in self.untouched for name in variable.names)
        return prune and old and not used

    def _import(self, node: ImportNode, renamed: dict[int, str]) -> None:
        groups: dict[tuple[int, str | None], list[tuple[str, str | None]]] = {}
        changed = False
        for alias in node.names:
            target = self.project.target(self.file, node, alias)
            if target is None or target.kind == "passes":
                fresh = (node.level, node.module) if isinstance(node, ast.ImportFrom) else (0, None)
                groups.setdefault(fresh, []).append((alias.name, alias.asname))
                continue
            key, name = self._moved(node, alias, target)
            person = target.kind in ("other", "star") or self.project.blocked(target)
            new = renamed.get(id(alias), "")
            asname = alias.asname or (
                None if new or target.kind in ("other", "star") else alias.name
            )
            if isinstance(node, ast.Import) and "." in alias.name:
                asname = alias.asname
            if new and alias.asname:  # another import binds the same variable without `as`
                asname = new
            groups.setdefault(key, []).append((name, None if asname == name else asname))
            changed = changed or not person
            kept = target.kind == "other" and self.project.services[target.source].fate == "prune"
            if not kept:
                action: Action = "report" if person else "edit"
                self.add(alias.lineno, "service-import", action, alias.name, person=person)
        if changed and node.lineno not in self.untouched:
            own = (node.level, node.module) if isinstance(node, ast.ImportFrom) else (0, None)
            made = tuple(
                ImportGroup(*key, tuple(groups[key])) for key in sorted(groups, key=own.__ne__)
            )
            self.fixes.imports[self.columns.start(node)] = made

    def _moved(
        self, node: ImportNode, alias: ast.alias, target: Target
    ) -> tuple[tuple[int, str | None], str]:
        """The module that a name is imported from afterwards, and its name there."""
        own = (node.level, node.module) if isinstance(node, ast.ImportFrom) else (0, None)
        if target.kind in ("other", "star") or self.project.blocked(target):
            return own, alias.name
        if isinstance(node, ast.Import):
            return own, absolute_path(alias.name, target.source, target.client or "")
        if target.client is None:
            return own, target.new
        level, module = module_path(
            self.file.path,
            node if target.kind == "symbol" else _with_name(node, alias.name),
            target.source,
            target.client,
        )
        if target.kind == "module":
            module = module.rpartition(".")[0]
            return (level, module or None), CLIENT_MODULE
        return (level, module), target.new

    def _rename(self, variable: Variable, new: str) -> None:
        for name in variable.names:
            if name.lineno not in self.untouched:
                self.fixes.names[self.columns.start(name)] = new
                self.add(name.lineno, "service-use", "edit", variable.name)
        for declaration in variable.declared:
            self._declaration(declaration, variable.name, new)
        if variable.scope.kind == "module":
            for string in _listed_names(self.file.tree, variable.name):
                self.fixes.strings[self.columns.start(string)] = new
                self.add(string.lineno, "service-use", "edit", variable.name)

    def _declaration(self, node: ast.Global | ast.Nonlocal, name: str, new: str) -> None:
        line = self.file.text.split("\n")[node.lineno - 1]
        if match := re.compile(rf"\b{name}\b").search(line, len(type(node).__name__)):
            self.fixes.names[node.lineno, match.start()] = new
            self.add(node.lineno, "service-use", "edit", name)

    def _attributes(self) -> None:
        """services.saiga_service.SaigaService, whatever way the module was imported."""
        owners = {id(name): each for each in self.file.variables for name in each.names}
        for node in self.file.nodes:
            if not isinstance(node, ast.Attribute) or node.lineno in self.untouched:
                continue
            if isinstance(node.value, ast.Name) and (owner := owners.get(id(node.value))):
                target = self.project.module_of(self.file, owner) if owner.imports else None
                if target and not self.project.blocked(target):
                    new = self.project.exports.get(target.source, {}).get(node.attr)
                    if new:
                        self._attribute(node, new)
            elif dotted := _dotted(node):
                self._chain(node, dotted, owners)

    def _chain(self, node: ast.Attribute, dotted: str, owners: dict[int, Variable]) -> None:
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        owner = owners.get(id(root))
        for statement, alias in owner.imports if owner else ():
            target = self.project.target(self.file, statement, alias)
            if not isinstance(statement, ast.Import) or alias.asname or not target:
                continue
            if target.kind == "passes":
                parent, _, last = dotted.rpartition(".")
                if parent == alias.name and self.project.has(target.source, last):
                    self._attribute(node, self.project.exports[target.source][last])
                continue
            if target.kind != "module" or self.project.blocked(target):
                continue
            if dotted == alias.name:
                self._attribute(node, CLIENT_MODULE)
            elif dotted.rpartition(".")[0] == alias.name and (
                new := self.project.exports[target.source].get(node.attr)
            ):
                self._attribute(node, new)

    def _attribute(self, node: ast.Attribute, new: str) -> None:
        self.fixes.names[self.columns.attribute(node)] = new
        self.add(node.end_lineno or node.lineno, "service-use", "edit", node.attr)

    def _dynamic_services(self) -> None:
        for node, name in llama_uses.dynamic_imports(self.file):
            source = self.project.modules.resolve(self.file.path, name)
            if source in self.project.services:
                self.add(node.lineno, "service-import", "report", name, person=True)

    # --- the rest --------------------------------------------------------------

    def _requirements(self) -> None:
        """The package in the lists of a setup.py."""
        if posixpath.basename(self.file.path) != "setup.py":
            return
        for node in self.file.nodes:
            for each in node.elts if isinstance(node, (ast.List, ast.Tuple)) else ():
                text = each.value if isinstance(each, ast.Constant) else None
                if isinstance(text, str) and is_requirement(text):
                    self.fixes.elements.add(self.columns.start(each))
                    self.add(each.lineno, "requirement", "edit", text)

    def _mentions(self) -> None:
        covered = {each.line for each in self.findings}
        covered |= {line for line, _ in self.fixes.imports}
        if self.service and self.service.fate == "prune":
            covered |= self.untouched
        names = "|".join(
            {name for each in self.project.exports.values() for name in each if "aiga" in name}
        )
        patched = re.compile(rf"[\w.]+\.({names})(\.\w+)*") if names else None
        for node in self.file.nodes:
            text = node.value if isinstance(node, ast.Constant) else None
            if patched and isinstance(text, str) and patched.fullmatch(text):
                line = getattr(node, "lineno", 0)
                if line not in covered:
                    self.add(line, "patched-name", "report", text, person=True)
                    covered.add(line)
        for number, line in enumerate(lines_of(self.file.text), start=1):
            if number in covered or not MENTION.search(line):
                continue
            kind = "saiga-prompt" if _PROMPT.search(line) else "mention"
            self.add(number, kind, "report", line.strip()[:120])


def _with_name(node: ast.ImportFrom, name: str) -> ast.ImportFrom:
    """`from package import module`, seen as `from package.module import …`."""
    module = f"{node.module}.{name}" if node.module else name
    return ast.ImportFrom(module, node.names, node.level)


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := _dotted(node.value)):
        return f"{head}.{node.attr}"
    return None


def _listed_names(tree: ast.Module, name: str) -> Iterator[ast.Constant]:
    """Where `__all__` names it."""
    for node in tree.body:
        targets: list[Any] = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if any(isinstance(each, ast.Name) and each.id == "__all__" for each in targets):
            for each in ast.walk(node):
                if isinstance(each, ast.Constant) and each.value == name:
                    yield each
