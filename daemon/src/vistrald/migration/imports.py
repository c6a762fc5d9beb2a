"""What each import of the old services becomes, over all files of the application together."""

import ast
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from vistrald.migration.llama_uses import dynamic_imports
from vistrald.migration.scopes import ImportNode, Variable
from vistrald.migration.services import (
    CLIENT_MODULE,
    Modules,
    PythonFile,
    find_services,
)


@dataclass(frozen=True)
class Target:
    """What an imported name is.

    symbol: a class or singleton that has a counterpart; module: an old service's module; passes: a
    module that hands names of the old service on; other: something else out of an old service.
    """

    kind: Literal["symbol", "module", "passes", "other", "star"]
    source: str  # the file it comes from
    new: str  # its name after the migration
    client: str | None  # the file that it comes from then, if that is another one


class Project:
    """The Python files of an application that mention the old model, and how they hang together."""

    def __init__(self, files: Mapping[str, PythonFile], names: set[str]) -> None:
        self.files = files
        self.modules = Modules(names)
        self.services = find_services(files)
        self.exports = {path: dict(each.exports) for path, each in self.services.items()}
        self._pass_on()
        self._decide_fates()

    def target(self, file: PythonFile, node: ImportNode, alias: ast.alias) -> Target | None:
        if isinstance(node, ast.Import):
            return self._module(self.modules.resolve(file.path, alias.name))
        module = node.module or ""
        source = self.modules.resolve(file.path, module, node.level)
        if source in self.exports and alias.name in self.exports[source]:
            service = self.services.get(source)
            new = self.exports[source][alias.name]
            return Target("symbol", source, new, service.client if service else None)
        inner = self.modules.resolve(file.path, f"{module}.{alias.name}".lstrip("."), node.level)
        if found := self._module(inner):
            return found
        if source in self.services:
            kind: Literal["star", "other"] = "star" if alias.name == "*" else "other"
            return Target(kind, source, alias.name, self.services[source].client)
        return None

    def _module(self, path: str | None) -> Target | None:
        if path in self.services:
            return Target("module", path, CLIENT_MODULE, self.services[path].client)
        if path in self.exports:
            return Target("passes", path, "", None)
        return None

    def new_name(self, file: PythonFile, variable: Variable) -> str | None:
        """What a variable that an import bound is called afterwards; None: it keeps its name."""
        found = {
            target.new
            for node, alias in variable.imports
            if alias.asname is None
            and (target := self.target(file, node, alias))
            and target.kind in ("symbol", "module")
            and not self.blocked(target)
            and (isinstance(node, ast.ImportFrom) or is_top_level(alias, target))
        }
        if len(found) != 1 or variable.other or variable.scope.kind == "class":
            return None
        if any(self._reads_through(each, variable.name) for each in file.variables):
            return None
        new = found.pop()
        if any(
            self._in_the_way(file, variable, each) for each in file.variables if each.name == new
        ):
            return None
        rival_names = self._names_for(file, new) - {variable.name}
        rivals = [each for each in file.variables if each.name in rival_names]
        if any(each.scope is variable.scope and each.name < variable.name for each in rivals):
            return None
        return new if new != variable.name else None

    def blocked(self, target: Target) -> bool:
        """A module of which something without a counterpart is used cannot be exchanged."""
        return target.kind == "module" and self.services[target.source].fate == "leave"

    def module_of(self, file: PythonFile, variable: Variable) -> Target | None:
        """The module that a variable is, if it is one of interest."""
        for node, alias in variable.imports:
            target = self.target(file, node, alias)
            dotted = isinstance(node, ast.Import) and "." in alias.name and not alias.asname
            if target and target.kind in ("module", "passes") and not dotted:
                return target
        return None

    def _in_the_way(self, file: PythonFile, variable: Variable, other: Variable) -> bool:
        """Whether another variable of the new name is something else than the client."""
        client_only = all(
            isinstance(node, ast.ImportFrom)
            and CLIENT_MODULE in ((node.module or "").split(".")[-1], alias.name)
            for node, alias in other.imports
        )
        stored = any(not isinstance(name.ctx, ast.Load) for name in other.names)
        return bool(other.other or stored or not client_only)

    def _reads_through(self, other: Variable, name: str) -> bool:
        """`class A: x = x` reads the module's x and binds its own: one name for two variables."""
        loads = any(isinstance(each.ctx, ast.Load) for each in other.names)
        return other.name == name and other.scope.kind == "class" and loads

    def _names_for(self, file: PythonFile, new: str) -> set[str]:
        """Variables of a file that would get the same new name, of another kind or not."""
        kinds: dict[str, set[str]] = {}
        for variable in file.variables:
            for node, alias in variable.imports:
                target = self.target(file, node, alias)
                if target and target.new == new and alias.asname is None:
                    kinds.setdefault(target.kind, set()).add(variable.name)
        # Several names of one singleton may become one; a module and a singleton may not.
        return set().union(*kinds.values()) if len(kinds) > 1 else set()

    def _pass_on(self) -> None:
        """Modules that import the service at their top hand it on to those that import them."""
        changed = True
        while changed:
            changed = False
            for path, file in self.files.items():
                if path in self.services:
                    continue
                for variable in file.module_variables():
                    new = self.new_name(file, variable) if variable.imports else None
                    if new and variable.name not in self.exports.get(path, {}):
                        self.exports.setdefault(path, {})[variable.name] = new
                        changed = True

    def _decide_fates(self) -> None:
        """A service goes, unless a file that stays needs something else of it."""
        changed = True
        while changed:
            changed = False
            for path, file in self.files.items():
                own = self.services.get(path)
                if own and own.goes:
                    continue
                for source, name in self._other_uses(file):
                    service = self.services[source]
                    if source == path:
                        continue
                    service.used_elsewhere.add(name)
                    whole = name in service.tainted_names or name in ("*", "")
                    fate = "leave" if whole or service.fate == "leave" else "prune"
                    if service.fate != fate:
                        service.fate, changed = fate, True

    def _other_uses(self, file: PythonFile) -> Iterator[tuple[str, str]]:
        """Names without a counterpart that a file takes from a service: (service, name)."""
        for variable in file.variables:
            for statement, alias in variable.imports:
                target = self.target(file, statement, alias)
                if target and target.kind in ("other", "star"):
                    yield target.source, alias.name
                elif (
                    target and target.kind == "module" and self._is_moved(statement, alias, target)
                ):
                    yield target.source, ""
        for _, module in dynamic_imports(file):
            if (source := self.modules.resolve(file.path, module)) in self.services:
                yield str(source), ""
        by_name = {id(name): each for each in file.variables for name in each.names}
        for node in file.nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = by_name.get(id(node.value))
                target = self.module_of(file, owner) if owner and owner.imports else None
                if target and target.kind == "module" and not self.has(target.source, node.attr):
                    # A module cannot be split as an import can: all of it has to stay.
                    yield target.source, ""

    def _is_moved(self, node: ImportNode, alias: ast.alias, target: Target) -> bool:
        """Whether the client's module would not be found by the same kind of import.

        Its package may bind the singleton, which has the same name; or `import old.saiga_service`
        is used by its full name and the client is not in `old`.
        """
        package = posixpath.join(posixpath.dirname(target.client or ""), "__init__.py")
        if CLIENT_MODULE in self.exports.get(package, {}).values():
            return True
        if not isinstance(node, ast.Import) or alias.asname or "." not in alias.name:
            return False
        fresh = absolute_path(alias.name, target.source, target.client or "")
        return fresh.rpartition(".")[0] != alias.name.rpartition(".")[0]

    def has(self, path: str, name: str) -> bool:
        return name in self.exports.get(path, {})


def module_path(importer: str, node: ast.ImportFrom, source: str, client: str) -> tuple[int, str]:
    """Level and dotted name of `client` for `importer`, which imported `source` before."""
    if node.level:
        here = posixpath.dirname(importer)
        up = posixpath.relpath(posixpath.dirname(client) or ".", here or ".")
        parts = [part for part in up.split("/") if part not in (".", "")]
        level = 1 + parts.count("..")
        names = [part for part in parts if part != ".."]
        return level, ".".join([*names, CLIENT_MODULE])
    return 0, absolute_path(node.module or "", source, client)


def is_top_level(alias: ast.alias, target: Target) -> bool:
    """Whether `import saiga_service` becomes `import vistral_service`, without any package."""
    if "." in alias.name or target.client is None:
        return False
    return absolute_path(alias.name, target.source, target.client) == CLIENT_MODULE


def absolute_path(module: str, source: str, client: str) -> str:
    """The client's dotted name where `module` is that of `source`."""
    without = source.removesuffix(".py").removesuffix("/__init__")
    root = without[: len(without) - len(module.replace(".", "/"))]
    if not client.startswith(root):
        root = ""
    return client[len(root) :].removesuffix(".py").replace("/", ".")
