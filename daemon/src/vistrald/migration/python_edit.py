"""Applies the fixes of a review to Python source with libcst, which keeps every other character."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from vistrald.migration.fixes import Fixes, ImportGroup, Position


class EditError(Exception):
    """The file cannot be edited without touching more than was meant."""


def edit(text: str, fixes: Fixes) -> str:
    """The edited source. Raises EditError."""
    try:
        module = cst.parse_module(text)
    except cst.ParserSyntaxError as error:
        raise EditError(f"libcst does not parse it: {error.message}") from None
    if module.code != text:
        raise EditError("libcst does not give back the same bytes")
    editor = _Editor(fixes)
    edited = MetadataWrapper(module, unsafe_skip_copy=True).visit(editor)
    if missing := editor.left():
        raise EditError(f"nothing to edit at line {missing[0]}")
    try:
        with warnings.catch_warnings():  # invalid escapes are the application's business
            warnings.simplefilter("ignore")
            compile(edited.code, "edited", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise EditError(f"would no longer compile: {error}") from None
    return edited.code


class _Editor(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, fixes: Fixes) -> None:
        super().__init__()
        self._fixes = fixes
        self._done: set[tuple[str, Position]] = set()
        self._dropped: set[cst.CSTNode] = set()

    def left(self) -> list[int]:
        """Lines of fixes that met nothing."""
        wanted = {("name", at) for at in self._fixes.names}
        wanted |= {("string", at) for at in self._fixes.strings}
        wanted |= {("value", at) for at in self._fixes.values}
        wanted |= {("import", at) for at in self._fixes.imports}
        wanted |= {("try", at) for at in self._fixes.tries}
        return sorted(at[0] for _, at in wanted - self._done)

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:  # noqa: N802
        new = self._take("name", self._fixes.names, original_node)
        return updated_node if new is None else updated_node.with_changes(value=new)

    def leave_SimpleString(  # noqa: N802
        self, original_node: cst.SimpleString, updated_node: cst.SimpleString
    ) -> cst.BaseExpression:
        new = self._take("string", self._fixes.strings, original_node)
        if new is None:
            return updated_node
        quote = updated_node.quote
        return updated_node.with_changes(value=f"{updated_node.prefix}{quote}{new}{quote}")

    def leave_Integer(  # noqa: N802
        self, original_node: cst.Integer, updated_node: cst.Integer
    ) -> cst.BaseExpression:
        return self._value(original_node, updated_node)

    def leave_Float(self, original_node: cst.Float, updated_node: cst.Float) -> cst.BaseExpression:  # noqa: N802
        return self._value(original_node, updated_node)

    def leave_UnaryOperation(  # noqa: N802
        self, original_node: cst.UnaryOperation, updated_node: cst.UnaryOperation
    ) -> cst.BaseExpression:
        return self._value(original_node, updated_node)

    def leave_List(self, original_node: cst.List, updated_node: cst.List) -> cst.BaseExpression:  # noqa: N802
        return self._value(original_node, updated_node)

    def leave_Element(  # noqa: N802
        self, original_node: cst.Element, updated_node: cst.Element
    ) -> Any:
        at = self._position(original_node)
        if at not in self._fixes.elements:
            return updated_node
        self._done.add(("element", at))
        return cst.RemoveFromParent()

    def _value(
        self, original: cst.BaseExpression, updated: cst.BaseExpression
    ) -> cst.BaseExpression:
        new = self._take("value", self._fixes.values, original)
        if new is None:
            return updated
        text = repr(new).replace("'", '"') if isinstance(new, list) else repr(new)
        return cst.parse_expression(text)

    def leave_SimpleStatementLine(  # noqa: N802
        self,
        original_node: cst.SimpleStatementLine,
        updated_node: cst.SimpleStatementLine,
    ) -> Any:
        """An import becomes none, one or several statements."""
        small: list[cst.BaseSmallStatement] = []
        extra: list[cst.SimpleStatementLine] = []
        for before, after in zip(original_node.body, updated_node.body, strict=True):
            groups = None
            if isinstance(before, (cst.Import, cst.ImportFrom)):
                groups = self._take("import", self._fixes.imports, before)
            if groups is None or not isinstance(after, (cst.Import, cst.ImportFrom)):
                small.append(after)
                continue
            made = list(_statements(after, groups))
            small += made[:1]
            extra += [cst.SimpleStatementLine([each]) for each in made[1:]]
        if not small:
            return cst.RemoveFromParent()
        small[-1] = small[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        line = updated_node.with_changes(body=small)
        return cst.FlattenSentinel([line, *extra]) if extra else line

    def leave_IndentedBlock(  # noqa: N802
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.BaseSuite:
        if updated_node.body:
            return updated_node
        return updated_node.with_changes(body=[cst.SimpleStatementLine([cst.Pass()])])

    def leave_Try(self, original_node: cst.Try, updated_node: cst.Try) -> Any:  # noqa: N802
        at = self._position(original_node)
        if at not in self._fixes.tries:
            return updated_node
        self._done.add(("try", at))
        body = updated_node.handlers[0].body
        if isinstance(body, cst.SimpleStatementSuite):
            statements: Sequence[cst.BaseStatement] = [cst.SimpleStatementLine(body.body)]
        else:
            statements = body.body  # type: ignore[assignment]
        kept = [each for each in statements if not _is_pass(each)]
        if not kept:
            return cst.RemoveFromParent()
        first = kept[0]
        lead = [*updated_node.leading_lines, *getattr(first, "leading_lines", [])]
        return cst.FlattenSentinel([first.with_changes(leading_lines=lead), *kept[1:]])

    def visit_Module(self, node: cst.Module) -> None:  # noqa: N802
        self._dropped = {
            each
            for each in node.body
            if any(line in self._lines(each) for line in self._fixes.dropped)
        }

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        updated = super().on_leave(original_node, updated_node)
        return cst.RemoveFromParent() if original_node in self._dropped else updated

    def _lines(self, node: cst.CSTNode) -> range:
        span = self.get_metadata(PositionProvider, node)
        return range(span.start.line, span.end.line + 1)

    def _take(self, kind: str, fixes: dict[Position, Any], node: cst.CSTNode) -> Any:
        if not fixes:
            return None
        at = self._position(node)
        if at not in fixes:
            return None
        self._done.add((kind, at))
        return fixes[at]

    def _position(self, node: cst.CSTNode) -> Position:
        start = self.get_metadata(PositionProvider, node).start
        return start.line, start.column


def _statements(
    node: cst.Import | cst.ImportFrom, groups: tuple[ImportGroup, ...]
) -> Iterator[cst.BaseSmallStatement]:
    for index, group in enumerate(groups):
        aliases = [_alias(name, alias) for name, alias in group.names]
        if isinstance(node, cst.Import):
            yield _import(node, aliases, first=index == 0)
            continue
        old = node.names
        if not isinstance(old, cst.ImportStar) and index == 0:
            aliases = _keep_layout(old, aliases)
        star = group.names[0][0] == "*"
        changes: dict[str, Any] = {
            "names": cst.ImportStar() if star else aliases,
            "relative": [cst.Dot()] * group.level,
            "module": _dotted(group.module) if group.module else None,
        }
        if index:
            changes |= {"lpar": None, "rpar": None}
        yield node.with_changes(**changes)


def _import(node: cst.Import, aliases: list[cst.ImportAlias], *, first: bool) -> cst.Import:
    return node.with_changes(names=_keep_layout(node.names, aliases) if first else aliases)


def _keep_layout(
    old: Sequence[cst.ImportAlias], new: list[cst.ImportAlias]
) -> list[cst.ImportAlias]:
    """Commas, line breaks and comments of the old names, as far as there are as many new ones."""
    if len(old) == len(new):
        return [
            each.with_changes(
                comma=before.comma,
                asname=each.asname
                and (before.asname or each.asname).with_changes(name=each.asname.name),
            )
            for before, each in zip(old, new, strict=True)
        ]
    commas = {_code(each.name): each.comma for each in old}
    laid_out = [each.with_changes(comma=commas.get(_code(each.name), old[0].comma)) for each in new]
    last = laid_out[-1]
    if _code(last.name) != _code(old[-1].name) and "\n" not in _code(last.comma):
        laid_out[-1] = last.with_changes(comma=old[-1].comma)
    return laid_out


def _alias(name: str, alias: str | None) -> cst.ImportAlias:
    asname = cst.AsName(cst.Name(alias)) if alias else None
    return cst.ImportAlias(name=cst.Name("x") if name == "*" else _dotted(name), asname=asname)


def _code(node: Any) -> str:
    return cst.Module([]).code_for_node(node) if isinstance(node, cst.CSTNode) else ""


def _dotted(name: str) -> Any:
    return cst.parse_expression(name)


def _is_pass(node: cst.BaseStatement) -> bool:
    return isinstance(node, cst.SimpleStatementLine) and all(
        isinstance(each, cst.Pass) for each in node.body
    )
