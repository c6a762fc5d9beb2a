"""What a Python file depends on of the old model, by syntax tree, and the fixes for it."""

import ast
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from vistrald.migration import llama_uses, settings_map
from vistrald.migration.finding import Action, Finding
from vistrald.migration.fixes import Columns, Fixes, ImportGroup
from vistrald.migration.imports import Project, Target, absolute_path, module_path
from vistrald.migration.requirements import is_requirement
from vistrald.migration.scopes import ImportNode, Variable
from vistrald.migration.services import CLIENT_MODULE, PythonFile, Service, llama_aliases
from vistrald.migration.text_review import MENTION

_PROMPT = re.compile(r"<s>\s*<system>|<bot>|<s>(system|user|bot)\\n")
# Calls whose string argument is a setting's name: getattr(settings, "SAIGA_…", default) and so on.
_READERS = {
    *("getattr", "hasattr", "setattr", "delattr", "getenv", "get", "pop", "setdefault", "setenv"),
    *("delenv", "setitem", "delitem", "env", "config", "Field", "AliasChoices", "field_validator"),
    *("validator", "field_serializer"),
}
# Those whose next argument is what holds where the setting is missing.
_DEFAULTS = {"getattr", "getenv", "get", "pop", "setdefault", "env", "config"}
# Calls around a default that is written out: int("8192"), Field(8192).
_WRAPPERS = {"Field", "int", "float", "str", "bool", "Path", "config", "expanduser", "abspath"}
_SETTING_KEYWORDS = {"env", "alias", "validation_alias", "serialization_alias", "env_prefix"}


class PythonReview:
    """Findings and fixes of one file; `removed` is why the whole file goes, if it does."""

    def __init__(self, project: Project, file: PythonFile) -> None:
        self._project = project
        self._file = file
        self._columns = Columns(file.text)
        self._service: Service | None = project.services.get(file.path)
        self.fixes = Fixes()
        self.findings: list[Finding] = []
        # Lines of what goes away with a service that is pruned, or stays with one that is left.
        self._untouched: set[int] = set()
        self._leave = False

    def review(self) -> None:
        service = self._service
        if service and service.goes:
            self._add(0, "service-module", self._fate(), ", ".join(service.exports))
        elif service:
            person = service.fate == "leave"
            what = ", ".join(sorted(service.used_elsewhere - {""})) or "its module"
            self._add(0, "service-mixed", "report" if person else "edit", what, person=person)
            for node in service.tainted:
                self._untouched.update(range(_first_line(node), (node.end_lineno or 0) + 1))
                if not person:
                    self.fixes.dropped.add(node.lineno)
        self._llama()
        self._imports()
        self._settings()
        self._requirements()
        self._mentions()
        self.findings.sort()

    # --- llama_cpp -------------------------------------------------------------

    def _llama(self) -> None:
        for use in llama_uses.find(self._file):
            line, kept = use.node.lineno, use.node.lineno in self._untouched
            kind = "llama-dynamic-import" if use.dynamic else "llama-import"
            if self._service:
                left = self._service.fate == "leave"
                self._add(line, kind, "report" if left else "edit", use.what, person=left)
                continue
            self._add(line, kind, "edit" if use.safe else "report", use.what, person=not use.safe)
            if kept or not use.safe:
                continue
            if use.guard:
                self.fixes.tries.add(self._columns.start(use.guard))
            elif isinstance(use.node, (ast.Import, ast.ImportFrom)):
                gone = llama_aliases(use.node)
                rest = tuple((a.name, a.asname) for a in use.node.names if a not in gone)
                group = (ImportGroup(0, None, rest),) if rest else ()
                self.fixes.imports[self._columns.start(use.node)] = group

    # --- the services ----------------------------------------------------------

    def _imports(self) -> None:
        new_names: dict[int, str] = {}
        for variable in self._file.variables:
            if variable.imports and (new := self._project.new_name(self._file, variable)):
                new_names[id(variable)] = new
                self._rename(variable, new)
        by_statement: dict[ImportNode, list[tuple[ast.alias, Variable]]] = {}
        for variable in self._file.variables:
            for node, alias in variable.imports:
                by_statement.setdefault(node, []).append((alias, variable))
        for node, bound in by_statement.items():
            if all(self._is_pruned(variable) for _, variable in bound):
                self.fixes.imports[self._columns.start(node)] = ()
                for alias, _ in bound:
                    self._add(alias.lineno, "service-import", "edit", alias.name)
                continue
            self._import(node, {id(a): new_names.get(id(v), "") for a, v in bound})
        self._attributes()
        self._dynamic_services()

    def _is_pruned(self, variable: Variable) -> bool:
        """Whether an imported old service was only used by what goes away here."""
        prune = self._service is not None and self._service.fate == "prune"
        old = any(
            (target := self._project.target(self._file, node, alias)) and target.client
            for node, alias in variable.imports
        )
        used = any(name.lineno not in self._untouched for name in variable.names)
        return prune and old and not used

    def _import(self, node: ImportNode, renamed: dict[int, str]) -> None:
        groups: dict[tuple[int, str | None], list[tuple[str, str | None]]] = {}
        changed = False
        for alias in node.names:
            target = self._project.target(self._file, node, alias)
            if target is None or target.kind == "passes":
                fresh = (node.level, node.module) if isinstance(node, ast.ImportFrom) else (0, None)
                groups.setdefault(fresh, []).append((alias.name, alias.asname))
                continue
            key, name = self._moved(node, alias, target)
            person = target.kind in ("other", "star") or self._project.blocked(target)
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
            kept = target.kind == "other" and self._project.services[target.source].fate == "prune"
            if not kept:
                action: Action = "report" if person else "edit"
                self._add(alias.lineno, "service-import", action, alias.name, person=person)
        if changed and node.lineno not in self._untouched:
            own = (node.level, node.module) if isinstance(node, ast.ImportFrom) else (0, None)
            made = tuple(
                ImportGroup(*key, tuple(groups[key])) for key in sorted(groups, key=own.__ne__)
            )
            self.fixes.imports[self._columns.start(node)] = made

    def _moved(
        self, node: ImportNode, alias: ast.alias, target: Target
    ) -> tuple[tuple[int, str | None], str]:
        """The module that a name is imported from afterwards, and its name there."""
        own = (node.level, node.module) if isinstance(node, ast.ImportFrom) else (0, None)
        if target.kind in ("other", "star") or self._project.blocked(target):
            return own, alias.name
        if isinstance(node, ast.Import):
            return own, absolute_path(alias.name, target.source, target.client or "")
        if target.client is None:
            return own, target.new
        level, module = module_path(
            self._file.path,
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
            if name.lineno not in self._untouched:
                self.fixes.names[self._columns.start(name)] = new
                self._add(name.lineno, "service-use", "edit", variable.name)
        for declaration in variable.declared:
            self._declaration(declaration, variable.name, new)
        if variable.scope.kind == "module":
            for string in _listed_names(self._file.tree, variable.name):
                self.fixes.strings[self._columns.start(string)] = new
                self._add(string.lineno, "service-use", "edit", variable.name)

    def _declaration(self, node: ast.Global | ast.Nonlocal, name: str, new: str) -> None:
        line = self._file.text.split("\n")[node.lineno - 1]
        if match := re.compile(rf"\b{name}\b").search(line, len(type(node).__name__)):
            self.fixes.names[node.lineno, match.start()] = new
            self._add(node.lineno, "service-use", "edit", name)

    def _attributes(self) -> None:
        """services.saiga_service.SaigaService, whatever way the module was imported."""
        owners = {id(name): each for each in self._file.variables for name in each.names}
        for node in self._file.nodes:
            if not isinstance(node, ast.Attribute) or node.lineno in self._untouched:
                continue
            if isinstance(node.value, ast.Name) and (owner := owners.get(id(node.value))):
                target = self._project.module_of(self._file, owner) if owner.imports else None
                if target and not self._project.blocked(target):
                    new = self._project.exports.get(target.source, {}).get(node.attr)
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
            target = self._project.target(self._file, statement, alias)
            if not isinstance(statement, ast.Import) or alias.asname or not target:
                continue
            if target.kind == "passes":
                parent, _, last = dotted.rpartition(".")
                if parent == alias.name and self._project.has(target.source, last):
                    self._attribute(node, self._project.exports[target.source][last])
                continue
            if target.kind != "module" or self._project.blocked(target):
                continue
            if dotted == alias.name:
                self._attribute(node, CLIENT_MODULE)
            elif dotted.rpartition(".")[0] == alias.name and (
                new := self._project.exports[target.source].get(node.attr)
            ):
                self._attribute(node, new)

    def _attribute(self, node: ast.Attribute, new: str) -> None:
        self.fixes.names[self._columns.attribute(node)] = new
        self._add(node.end_lineno or node.lineno, "service-use", "edit", node.attr)

    def _dynamic_services(self) -> None:
        for node, name in llama_uses.dynamic_imports(self._file):
            source = self._project.modules.resolve(self._file.path, name)
            if source in self._project.services:
                self._add(node.lineno, "service-import", "report", name, person=True)

    # --- settings --------------------------------------------------------------

    def _settings(self) -> None:
        for node in self._file.nodes:
            match node:
                case ast.Attribute() if settings_map.is_setting(node.attr):
                    self._setting(node.attr, self._columns.attribute(node), "setting-read")
                case ast.Name() if settings_map.SETTING.fullmatch(node.id):
                    self._setting(node.id, self._columns.start(node), "setting-read")
                case ast.arg() if settings_map.SETTING.fullmatch(node.arg):
                    self._setting(node.arg, self._columns.start(node), "setting-read")
                case ast.keyword() if node.arg and settings_map.is_setting(node.arg):
                    self._setting(node.arg, self._columns.start(node), "setting-read")
                case _:
                    self._setting_in(node)

    def _setting_in(self, node: ast.AST) -> None:
        match node:
            case ast.ClassDef():
                self._fields(node)
            case ast.Assign(targets=[ast.Name(id=name)]) if settings_map.SETTING.fullmatch(name):
                self._default(name, node.value)
            case ast.ImportFrom():
                self._imported_settings(node)
            case ast.Call():
                self._setting_call(node)
            case ast.Subscript(slice=ast.Constant(value=str(name))):
                self._setting_string(node.slice, name)
            case ast.Dict():
                for key, value in zip(node.keys, node.values, strict=True):
                    key_text = key.value if isinstance(key, ast.Constant) else None
                    if key and isinstance(key_text, str) and self._setting_string(key, key_text):
                        self._default(key_text, value)

    def _fields(self, node: ast.ClassDef) -> None:
        for each in node.body:
            target: ast.expr | None = each.target if isinstance(each, ast.AnnAssign) else None
            if isinstance(each, ast.Assign) and len(each.targets) == 1:
                target = each.targets[0]
            if isinstance(target, ast.Name) and settings_map.is_setting(target.id):
                self._setting(target.id, self._columns.start(target), "setting-field")
                if isinstance(each, (ast.Assign, ast.AnnAssign)) and each.value:
                    self._default(target.id, each.value)

    def _imported_settings(self, node: ast.ImportFrom) -> None:
        taken = self._columns.start(node) in self.fixes.imports
        for alias in node.names:
            if settings_map.SETTING.fullmatch(alias.name) and not taken:
                self._setting(alias.name, self._columns.start(alias), "setting-read")

    def _setting_call(self, node: ast.Call) -> None:
        function = node.func
        called = (
            function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        )
        for keyword in node.keywords:
            value = keyword.value
            if keyword.arg in _SETTING_KEYWORDS and isinstance(value, ast.Constant):
                if value.value == "SAIGA_":
                    self._string(value, "VISTRAL_", "setting-field", "SAIGA_")
                elif isinstance(value.value, str):
                    self._setting_string(value, value.value)
        if called not in _READERS:
            return
        for index, argument in enumerate(node.args):
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                continue
            found = self._setting_string(argument, argument.value)
            if found and called in _DEFAULTS and index + 1 < len(node.args):
                self._default(argument.value, node.args[index + 1])

    def _setting_string(self, node: ast.expr, name: str) -> bool:
        if not settings_map.is_setting(name):
            return False
        self._string(node, settings_map.counterpart(name), "setting-read", name)
        return True

    def _string(self, node: ast.expr, new: str, kind: str, what: str) -> None:
        if not self._is_one_literal(node, what):
            self._add(node.lineno, kind, "report", what, person=True)
        elif node.lineno not in self._untouched:
            self.fixes.strings[self._columns.start(node)] = new
            self._add(node.lineno, kind, "edit", what)

    def _is_one_literal(self, node: ast.expr, value: str) -> bool:
        """Not 'a' 'b', nor with escapes: between its quotes stands what it means."""
        source = ast.get_source_segment(self._file.text, node) or ""
        return source.lstrip("rRuU").strip("'\"") == value

    def _setting(self, name: str, position: tuple[int, int], kind: str) -> None:
        if position[0] in self._untouched or position in self.fixes.names:
            if kind == "setting-field":
                self._replace_kind(position[0], name)
            return
        self.fixes.names[position] = settings_map.counterpart(name)
        reads_path = kind == "setting-read" and settings_map.is_model_path(name)
        if reads_path and not (self._service and self._service.goes):
            self._add(position[0], "model-path-read", "edit", name, person=True)
        else:
            self._add(position[0], kind, "edit", name)

    def _replace_kind(self, line: int, name: str) -> None:
        """A field was met as a plain name before its class was."""
        self.findings = [
            each
            for each in self.findings
            if (each.line, each.what) != (line, name)
            or each.kind not in ("setting-read", "model-path-read")
        ]
        self._add(line, "setting-field", "edit", name)

    def _default(self, name: str, value: ast.expr) -> None:
        """The counterpart's default, where the old one is written out."""
        for literal in _literals(value):
            if literal.lineno in self._untouched:
                continue
            old = ast.literal_eval(literal)
            new = settings_map.new_value(name, old)
            if new == old:
                continue
            position = self._columns.start(literal)
            if isinstance(old, str) and not self._is_one_literal(literal, old):
                continue
            if isinstance(new, str):
                self.fixes.strings[position] = new
            else:
                self.fixes.values[position] = new

    def _requirements(self) -> None:
        """The package in the lists of a setup.py."""
        if posixpath.basename(self._file.path) != "setup.py":
            return
        for node in self._file.nodes:
            for each in node.elts if isinstance(node, (ast.List, ast.Tuple)) else ():
                text = each.value if isinstance(each, ast.Constant) else None
                if isinstance(text, str) and is_requirement(text):
                    self.fixes.elements.add(self._columns.start(each))
                    self._add(each.lineno, "requirement", "edit", text)

    # --- the rest --------------------------------------------------------------

    def _mentions(self) -> None:
        covered = {each.line for each in self.findings}
        covered |= {line for line, _ in self.fixes.imports}
        if self._service and self._service.fate == "prune":
            covered |= self._untouched
        names = "|".join(
            {name for each in self._project.exports.values() for name in each if "aiga" in name}
        )
        patched = re.compile(rf"[\w.]+\.({names})(\.\w+)*") if names else None
        for node in self._file.nodes:
            text = node.value if isinstance(node, ast.Constant) else None
            if patched and isinstance(text, str) and patched.fullmatch(text):
                line = getattr(node, "lineno", 0)
                if line not in covered:
                    self._add(line, "patched-name", "report", text, person=True)
                    covered.add(line)
        for number, line in enumerate(self._file.text.splitlines(), start=1):
            if number in covered or not MENTION.search(line):
                continue
            kind = "saiga-prompt" if _PROMPT.search(line) else "mention"
            self._add(number, kind, "report", line.strip()[:120])

    def _fate(self) -> Action:
        return "replace" if self._service and self._service.fate == "replace" else "delete"

    def _add(
        self, line: int, kind: str, action: Action, what: str, *, person: bool = False
    ) -> None:
        if self._service and self._service.goes:
            action, person = self._fate(), False  # it goes with its file
        found = Finding(self._file.path, line, kind, action, what, person)
        if found not in self.findings:
            self.findings.append(found)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


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


def _literals(node: ast.expr) -> Iterator[ast.expr]:
    """The literals that a default consists of: 8192, Field(8192), int(os.getenv("X", "8192"))."""
    match node:
        case ast.Constant(value=str() | int() | float()) if not isinstance(node.value, bool):
            yield node
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
            yield node
        case ast.List() if all(isinstance(each, ast.Constant) for each in node.elts):
            yield node
        case ast.BoolOp():
            for each in node.values:
                yield from _literals(each)
        case ast.Call():
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if name in _WRAPPERS:
                for each in node.args[:1]:
                    yield from _literals(each)
            for keyword in node.keywords:
                if keyword.arg == "default":
                    yield from _literals(keyword.value)
                elif keyword.arg == "default_factory" and isinstance(keyword.value, ast.Lambda):
                    yield from _literals(keyword.value.body)
