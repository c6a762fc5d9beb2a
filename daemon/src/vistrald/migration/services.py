"""The old services of an application: which modules they are, and who imports what from them."""

import ast
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from vistrald.migration.scopes import ImportNode, Variable, bound_name, variables

CLIENT_MODULE, CLIENT_CLASS, CLIENT_SINGLETON = (
    "vistral_service",
    "VistralService",
    "vistral_service",
)
INTERFACE = {
    *("generate_response", "generate_response_async", "stream_response", "create_legal_prompt"),
    *("create_legal_prompt_with_history", "ensure_model_loaded_async", "ensure_model_loaded_sync"),
    *("preload_model", "is_model_loaded", "get_stats"),
}
_OLD = re.compile(r"saiga", re.IGNORECASE)
# Where copies are kept that nobody runs: the client does not go there if there is a better place.
_BACKWATERS = re.compile(r"(^|[/_.-])(legacy|old|backup|archive|deprecated|attic|tests?)([/_.-]|$)")


@dataclass
class PythonFile:
    path: str
    text: str
    tree: ast.Module

    @cached_property
    def variables(self) -> list[Variable]:
        return variables(self.tree)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def is_test(self) -> bool:
        parts = self.path.split("/")
        return bool({"test", "tests"} & set(parts[:-1])) or parts[-1].startswith(
            ("test_", "conftest")
        )

    def module_variables(self) -> Iterator[Variable]:
        return (each for each in self.variables if each.scope.kind == "module")


@dataclass
class Service:
    """A module that runs the old model."""

    file: PythonFile
    exports: dict[str, str]  # its classes and singletons, and what the client calls them
    tainted: list[ast.stmt]  # top-level statements that are nothing without the old model
    tainted_names: set[str]
    client: str = ""  # the path of the client that takes its place
    fate: str = "delete"  # or "replace", "prune", "leave"
    used_elsewhere: set[str] = field(default_factory=set)  # names that have no counterpart

    @property
    def goes(self) -> bool:
        return self.fate in ("delete", "replace")


class Modules:
    """Finds the file that an import means."""

    def __init__(self, names: Iterable[str]) -> None:
        self._files = {name for name in names if name.endswith(".py")}
        self._by_tail: dict[str, list[str]] = {}
        self._resolved: dict[tuple[str, str, int], str | None] = {}
        for name in self._files:
            self._by_tail.setdefault(posixpath.basename(name), []).append(name)

    def resolve(self, importer: str, module: str, level: int = 0) -> str | None:
        key = (posixpath.dirname(importer), module, level)
        if key not in self._resolved:
            self._resolved[key] = self._find(*key)
        return self._resolved[key]

    def _find(self, folder: str, module: str, level: int) -> str | None:
        parts = module.split(".") if module else []
        if level:
            for _ in range(level - 1):
                folder = posixpath.dirname(folder)
            return self._in(folder, parts)
        if not parts:
            return None
        while True:
            if found := self._in(folder, parts):
                return found
            if not folder:
                break
            folder = posixpath.dirname(folder)
        # A script that puts the package's folder on sys.path.
        tail = "/".join(parts) + ".py"
        same = [
            each for each in self._by_tail.get(f"{parts[-1]}.py", []) if each.endswith(f"/{tail}")
        ]
        return min(same, key=lambda each: (len(each), each), default=None)

    def _in(self, folder: str, parts: list[str]) -> str | None:
        base = posixpath.join(folder, *parts)
        for candidate in (f"{base}.py", posixpath.join(base, "__init__.py")):
            if candidate in self._files:
                return candidate
        return None


def find_services(files: Mapping[str, PythonFile]) -> dict[str, Service]:
    """The modules among `files` that define the old service, or a copy of it."""
    services = {}
    for path, file in files.items():
        stem = posixpath.basename(path).removesuffix(".py")
        if file.is_test or stem == CLIENT_MODULE:
            continue
        classes = _service_classes(file.tree, bool(_OLD.search(stem)))
        if classes:
            exports = dict.fromkeys(classes, CLIENT_CLASS)
            exports |= dict.fromkeys(_singletons(file.tree, classes), CLIENT_SINGLETON)
            tainted, names = taint(file.tree, set(classes))
            services[path] = Service(file, exports, tainted, names)
    _place_clients(services)
    return services


def _service_classes(tree: ast.Module, old_module: bool) -> list[str]:
    found: list[str] = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not (old_module or _OLD.search(node.name)):
            continue
        methods = {
            each.name
            for each in node.body
            if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        if len(methods & INTERFACE) >= 2 or bases & set(found) or _is_service_base(bases):
            found.append(node.name)
    return found


def _is_service_base(bases: set[str]) -> bool:
    return any(re.fullmatch(r"\w*Saiga\w*Service\w*", base) for base in bases)


def _singletons(tree: ast.Module, classes: list[str]) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            maker = node.value.func
            if isinstance(maker, ast.Name) and maker.id in classes:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (each.id for each in targets if isinstance(each, ast.Name))


def is_llama(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == "llama_cpp"


def llama_aliases(node: ImportNode) -> list[ast.alias]:
    if isinstance(node, ast.ImportFrom):
        return node.names if is_llama(node.module) and not node.level else []
    return [alias for alias in node.names if is_llama(alias.name)]


def taint(tree: ast.Module, seeds: set[str]) -> tuple[list[ast.stmt], set[str]]:
    """Top-level statements that need llama_cpp or one of `seeds`, and the names they bind."""
    names = set(seeds)
    tainted: list[ast.stmt] = []
    while True:
        found = [node for node in tree.body if node not in tainted and _needs(node, names)]
        if not found:
            return sorted(tainted, key=lambda node: node.lineno), names
        tainted += found
        for node in found:
            names |= _binds(node)


def _needs(node: ast.stmt, names: set[str]) -> bool:
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id in names:
            return True
        if isinstance(each, (ast.Import, ast.ImportFrom)) and llama_aliases(each):
            return True
    return isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in names


def _binds(node: ast.stmt) -> set[str]:
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return {node.name}
        case ast.Import() | ast.ImportFrom():
            return {bound_name(alias) for alias in llama_aliases(node)}
    return {
        name
        for each in ast.walk(node)
        for name in (
            [each.id]
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            else [bound_name(alias) for alias in llama_aliases(each)]
            if isinstance(each, (ast.Import, ast.ImportFrom))
            else []
        )
    }


def _place_clients(services: dict[str, Service]) -> None:
    """A client beside each saiga_service.py in use; copies are led to the nearest one."""
    main = [path for path in services if posixpath.basename(path) == "saiga_service.py"]
    places = [path for path in main if not _BACKWATERS.search(path)] or main or sorted(services)[:1]
    clients = {
        place: posixpath.join(posixpath.dirname(place), f"{CLIENT_MODULE}.py") for place in places
    }
    for path, service in services.items():
        nearest = max(places, key=lambda place: (_shared(place, path), -len(place), place))
        service.client = clients[nearest]
        service.fate = "replace" if path in clients else "delete"


def _shared(one: str, other: str) -> int:
    """How many folders two paths have in common."""
    pairs = zip(one.split("/")[:-1], other.split("/")[:-1], strict=False)
    count = 0
    for left, right in pairs:
        if left != right:
            break
        count += 1
    return count
