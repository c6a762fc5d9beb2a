"""SAIGA_* settings in Python: attributes, names, keywords, strings that name one, and defaults."""

import ast
from collections.abc import Iterator

from vistrald.migration import settings_map
from vistrald.migration.notes import Notes

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


class SettingsReview:
    """Adds findings and fixes to the notes on a file."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def review(self) -> None:
        for node in self._notes.file.nodes:
            match node:
                case ast.Attribute() if settings_map.is_setting(node.attr):
                    self._setting(node.attr, self._notes.columns.attribute(node), "setting-read")
                case ast.Name() if settings_map.SETTING.fullmatch(node.id):
                    self._setting(node.id, self._notes.columns.start(node), "setting-read")
                case ast.arg() if settings_map.SETTING.fullmatch(node.arg):
                    self._setting(node.arg, self._notes.columns.start(node), "setting-read")
                case ast.keyword() if node.arg and settings_map.is_setting(node.arg):
                    self._setting(node.arg, self._notes.columns.start(node), "setting-read")
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
                self._setting(target.id, self._notes.columns.start(target), "setting-field")
                if isinstance(each, (ast.Assign, ast.AnnAssign)) and each.value:
                    self._default(target.id, each.value)

    def _imported_settings(self, node: ast.ImportFrom) -> None:
        taken = self._notes.columns.start(node) in self._notes.fixes.imports
        for alias in node.names:
            if settings_map.SETTING.fullmatch(alias.name) and not taken:
                self._setting(alias.name, self._notes.columns.start(alias), "setting-read")

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
            self._notes.add(node.lineno, kind, "report", what, person=True)
        elif node.lineno not in self._notes.untouched:
            self._notes.fixes.strings[self._notes.columns.start(node)] = new
            self._notes.add(node.lineno, kind, "edit", what)

    def _is_one_literal(self, node: ast.expr, value: str) -> bool:
        """Not 'a' 'b', nor with escapes: between its quotes stands what it means."""
        source = ast.get_source_segment(self._notes.file.text, node) or ""
        return source.lstrip("rRuU").strip("'\"") == value

    def _setting(self, name: str, position: tuple[int, int], kind: str) -> None:
        if position[0] in self._notes.untouched or position in self._notes.fixes.names:
            if kind == "setting-field":
                self._replace_kind(position[0], name)
            return
        self._notes.fixes.names[position] = settings_map.counterpart(name)
        reads_path = kind == "setting-read" and settings_map.is_model_path(name)
        if reads_path and not (self._notes.service and self._notes.service.goes):
            self._notes.add(position[0], "model-path-read", "edit", name, person=True)
        else:
            self._notes.add(position[0], kind, "edit", name)

    def _replace_kind(self, line: int, name: str) -> None:
        """A field was met as a plain name before its class was."""
        self._notes.findings = [
            each
            for each in self._notes.findings
            if (each.line, each.what) != (line, name)
            or each.kind not in ("setting-read", "model-path-read")
        ]
        self._notes.add(line, "setting-field", "edit", name)

    def _default(self, name: str, value: ast.expr) -> None:
        """The counterpart's default, where the old one is written out."""
        for literal in _literals(value):
            if literal.lineno in self._notes.untouched:
                continue
            old = ast.literal_eval(literal)
            new = settings_map.new_value(name, old)
            if new == old:
                continue
            position = self._notes.columns.start(literal)
            if isinstance(old, str) and not self._is_one_literal(literal, old):
                continue
            if isinstance(new, str):
                self._notes.fixes.strings[position] = new
            else:
                self._notes.fixes.values[position] = new


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
