"""Where a module brings llama_cpp in, and whether it can be taken out of there."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from vistrald.migration.scopes import ImportNode, Variable
from vistrald.migration.services import PythonFile, is_llama, llama_aliases

_CATCHES_IMPORT_ERROR = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True)
class LlamaUse:
    node: ImportNode | ast.Call
    what: str
    dynamic: bool
    safe: bool  # nothing else needs it, or a guard says what to do without it
    guard: ast.Try | None = None


def find(file: PythonFile) -> Iterator[LlamaUse]:
    guards = _guards(file.nodes)
    bound: dict[ImportNode, list[Variable]] = {}
    for variable in file.variables:
        for statement, alias in variable.imports:
            if alias in llama_aliases(statement):
                bound.setdefault(statement, []).append(variable)
    for node in file.nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and llama_aliases(node):
            unused = all(
                not each.names and len(each.imports) == 1 and not _is_listed(file.tree, each.name)
                for each in bound.get(node, [])
            )
            what = ", ".join(alias.name for alias in llama_aliases(node))
            if isinstance(node, ast.ImportFrom):
                what = f"{node.module}: {what}"
            guard = guards.get(id(node))
            yield LlamaUse(node, what, False, bool(guard) or unused, guard)
    for call, name in dynamic_imports(file):
        if is_llama(name):
            guard = guards.get(id(call))
            yield LlamaUse(call, name, True, guard is not None, guard)


def dynamic_imports(file: PythonFile) -> Iterator[tuple[ast.Call, str]]:
    """Calls of __import__, importlib.import_module and find_spec under any name, and the module."""
    names = {"__import__"}
    modules: set[str] = set()
    for variable in file.variables:
        for node, alias in variable.imports:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("importlib"):
                (modules if alias.name == "util" else names).add(variable.name)
            elif alias.name.split(".")[0] == "importlib":
                modules.add(variable.name)
    for call in file.nodes:
        if not isinstance(call, ast.Call) or not call.args:
            continue
        argument, function = call.args[0], call.func
        if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
            continue
        plain = isinstance(function, ast.Name) and function.id in names
        root: ast.expr = function
        while isinstance(root, ast.Attribute):
            root = root.value
        dotted = isinstance(function, ast.Attribute) and function.attr in (
            "import_module",
            "find_spec",
            "__import__",
        )
        if plain or (dotted and isinstance(root, ast.Name) and root.id in modules | {"builtins"}):
            yield call, argument.value


def _guards(nodes: list[ast.AST]) -> dict[int, ast.Try]:
    """Imports in `try: import llama_cpp; X = True / except ImportError: X = False`, by id.

    Without the package Python does what the handler says; so does the edited file.
    """
    found: dict[int, ast.Try] = {}
    for node in nodes:
        if not isinstance(node, ast.Try) or node.finalbody or len(node.handlers) != 1:
            continue
        handler = node.handlers[0]
        caught = (
            {each.id for each in ast.walk(handler.type) if isinstance(each, ast.Name)}
            if handler.type
            else {"Exception"}
        )
        raises = any(isinstance(each, ast.Raise) for each in ast.walk(handler))
        if not caught & _CATCHES_IMPORT_ERROR or raises or handler.name:
            continue
        if all(_is_only_llama(each) for each in node.body):
            for each in node.body:
                for inner in ast.walk(each):
                    found[id(inner)] = node
    return found


def _is_only_llama(node: ast.stmt) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom():
            return llama_aliases(node) == node.names
        case ast.Assign(value=ast.Constant()) | ast.Pass():
            return True
        case ast.Assign(value=ast.Call(args=[ast.Constant(value=str(name))])):
            return is_llama(name)
    return False


def _is_listed(tree: ast.Module, name: str) -> bool:
    return any(isinstance(each, ast.Constant) and each.value == name for each in ast.walk(tree))
