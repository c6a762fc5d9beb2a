"""What a review of one Python file has found so far, and what it may not touch."""

import ast

from vistrald.migration.finding import Action, Finding
from vistrald.migration.fixes import Columns, Fixes
from vistrald.migration.imports import Project
from vistrald.migration.services import PythonFile, Service


class Notes:
    def __init__(self, project: Project, file: PythonFile) -> None:
        self.project = project
        self.file = file
        self.columns = Columns(file.text)
        self.service: Service | None = project.services.get(file.path)
        self.fixes = Fixes()
        self.findings: list[Finding] = []
        # Lines of what goes away with a service that is pruned, or stays with one that is left.
        self.untouched: set[int] = set()

    def begin(self) -> None:
        """What becomes of the file as a whole, if it is an old service."""
        service = self.service
        if service and service.goes:
            self.add(0, "service-module", self.fate(), ", ".join(service.exports))
        elif service:
            person = service.fate == "leave"
            what = ", ".join(sorted(service.used_elsewhere - {""})) or "its module"
            self.add(0, "service-mixed", "report" if person else "edit", what, person=person)
            for node in service.tainted:
                self.untouched.update(range(_first_line(node), (node.end_lineno or 0) + 1))
                if not person:
                    self.fixes.dropped.add(node.lineno)

    def fate(self) -> Action:
        return "replace" if self.service and self.service.fate == "replace" else "delete"

    def add(self, line: int, kind: str, action: Action, what: str, *, person: bool = False) -> None:
        if self.service and self.service.goes:
            action, person = self.fate(), False  # it goes with its file
        found = Finding(self.file.path, line, kind, action, what, person)
        if found not in self.findings:
            self.findings.append(found)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])
