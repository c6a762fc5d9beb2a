"""Which names of a Python module mean the same variable: enough of scoping to rename an import."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

ImportNode = ast.Import | ast.ImportFrom


@dataclass(eq=False)
class Variable:
    """A name in a scope, with everything that binds or reads it."""

    name: str
    scope: "Scope"
    imports: list[tuple[ImportNode, ast.alias]] = field(default_factory=list)
    names: list[ast.Name] = field(default_factory=list)
    declared: list[ast.Global | ast.Nonlocal] = field(default_factory=list)
    other: int = 0  # bindings that are neither: parameters, functions, classes, `except … as`


@dataclass(eq=False)
class Scope:
    kind: Literal["module", "function", "class"]
    parent: "Scope | None"
    variables: dict[str, Variable] = field(default_factory=dict)
    bound: set[str] = field(default_factory=set)
    outer: dict[str, str] = field(default_factory=dict)  # names declared global or nonlocal

    def variable(self, name: str) -> Variable:
        return self.variables.setdefault(name, Variable(name, self))

    def owner(self, name: str) -> "Scope":
        """The scope whose variable the name is, seen from here; the module's if none binds it."""
        if name in self.bound and name not in self.outer:
            return self
        scope = self.parent
        if self.outer.get(name) == "global":
            scope = self.root()
        while scope is not None and scope.parent is not None:
            if scope.kind != "class" and name in scope.bound and name not in scope.outer:
                return scope
            scope = scope.parent
        return self.root()

    def root(self) -> "Scope":
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope


def variables(tree: ast.Module) -> list[Variable]:
    builder = _Builder()
    module = Scope("module", None)
    builder.body(tree, module)
    for node, scope in builder.names:
        scope.owner(node.id).variable(node.id).names.append(node)
    for statement, alias, scope in builder.imports:
        name = bound_name(alias)
        scope.owner(name).variable(name).imports.append((statement, alias))
    for name, scope in builder.others:
        scope.owner(name).variable(name).other += 1
    for declaration, scope in builder.declarations:
        for name in declaration.names:
            scope.owner(name).variable(name).declared.append(declaration)
    scopes = [module, *builder.scopes]
    return [variable for scope in scopes for variable in scope.variables.values()]


def bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


class _Builder:
    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.names: list[tuple[ast.Name, Scope]] = []
        self.imports: list[tuple[ImportNode, ast.alias, Scope]] = []
        self.others: list[tuple[str, Scope]] = []
        self.declarations: list[tuple[ast.Global | ast.Nonlocal, Scope]] = []

    def body(self, node: ast.AST, scope: Scope) -> None:
        for child in ast.iter_child_nodes(node):
            self.visit(child, scope)

    def visit(self, node: ast.AST, scope: Scope) -> None:
        match node:
            case ast.Name():
                self.names.append((node, scope))
                if not isinstance(node.ctx, ast.Load):
                    scope.bound.add(node.id)
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    scope.bound.add(bound_name(alias))
                    self.imports.append((node, alias, scope))
            case ast.Global() | ast.Nonlocal():
                kind = "global" if isinstance(node, ast.Global) else "nonlocal"
                scope.outer.update(dict.fromkeys(node.names, kind))
                self.declarations.append((node, scope))
            case ast.ClassDef():
                self._bind(node.name, scope)
                for each in (*node.decorator_list, *node.bases, *node.keywords):
                    self.visit(each, scope)
                inner = self._open("class", scope)
                for each in node.body:
                    self.visit(each, inner)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._function(node, scope)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._comprehension(node, scope)
            case ast.ExceptHandler() if node.name:
                self._bind(node.name, scope)
                self.body(node, scope)
            case _:
                self.body(node, scope)

    def _function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: Scope
    ) -> None:
        arguments = node.args
        outside = [*arguments.defaults, *(each for each in arguments.kw_defaults if each)]
        parameters = list(_parameters(arguments))
        outside += [each.annotation for each in parameters if each.annotation]
        if not isinstance(node, ast.Lambda):
            self._bind(node.name, scope)
            outside += node.decorator_list + ([node.returns] if node.returns else [])
        for expression in outside:
            self.visit(expression, scope)
        inner = self._open("function", scope)
        for parameter in parameters:
            self._bind(parameter.arg, inner)
        for each in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(each, inner)

    def _comprehension(self, node: ast.AST, scope: Scope) -> None:
        # Its first iterable is evaluated outside; seen from inside it names the same variable
        # unless the loop's own variable hides it, which would be odd code.
        self.body(node, self._open("function", scope))

    def _open(self, kind: Literal["function", "class"], parent: Scope) -> Scope:
        scope = Scope(kind, parent)
        self.scopes.append(scope)
        return scope

    def _bind(self, name: str, scope: Scope) -> None:
        scope.bound.add(name)
        self.others.append((name, scope))


def _parameters(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    yield from (each for each in (arguments.vararg, arguments.kwarg) if each)
