"""The plan says what apply does, in both languages, and no secrets."""

import json
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.migration.helpers import MODEL, picture
from tests.migration.test_transaction import CLIENT, apply
from vistrald.cli import main
from vistrald.migration.changes import changes_of
from vistrald.migration.finding import Language
from vistrald.migration.plan import make_plan, render
from vistrald.migration.scan import scan

HOST = {
    "name": "cloud-1608",
    "machine": "x86_64",
    "cpu": "EPYC",
    "cores": 8,
    "cpu_flags": ["avx2"],
    "memory_bytes": 16_700_000_000,
    "disk_free_bytes": 100_000_000_000,
}


def plan_of(root: Path, language: Language = "ru", **host: Any) -> dict[str, Any]:
    result = scan(root)
    changes, failed = changes_of(result, CLIENT.read_bytes())
    return make_plan(
        result,
        changes,
        failed,
        archive=root.parent / "archive",
        host=HOST | host,
        made=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        language=language,
    )


@pytest.mark.requirement("1.3")
def test_its_diffs_are_what_apply_does(application: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(application, copy, symlinks=True)
    for change in plan_of(application)["changes"]:
        unicode = change["path"] not in ("env.windows", "backend/requirements-win.txt")
        if change["diff"] and unicode and change["path"] != ".env.docker":  # its mark is not text
            command = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", "-"]
            subprocess.run(command, cwd=copy, input=change["diff"], text=True, check=True)
    apply(application, tmp_path / "archive")
    applied, patched = picture(application), picture(copy)
    for change in plan_of(copy)["changes"]:
        assert change["kind"] != "edit" or change["path"] in (
            *("env.windows", "backend/requirements-win.txt", ".env.docker"),
        )
    for path, entry in patched.items():
        if path in applied and path.endswith((".py", ".yml", ".toml", ".sh", ".txt", ".env")):
            win = path == "backend/requirements-win.txt"
            assert win or applied[path][-1] == entry[-1], path


@pytest.mark.requirement("1.4")
@pytest.mark.requirement("1.5")
@pytest.mark.parametrize("language", ["ru", "en"])
def test_it_is_complete(application: Path, language: Language) -> None:
    plan = plan_of(application, language)
    text = render(plan, "plan.md")
    for each in plan["findings"]:
        assert f"| {each['file']}" in text
    for each in (*plan["decisions"], *(step["title"] for step in plan["steps"])):
        assert each in text
    for each in plan["incompatibilities"]:
        assert each["problem"]
        assert each["solution"] in text
    assert {each["kind"] for each in plan["changes"]} == {"create", "edit", "delete", "move"}
    assert plan["space"]["freed_bytes"] == len(MODEL)
    assert plan["rollback"] in text
    assert "25.0" in text  # what the MLX files really are, in GB
    assert plan["minutes"] > plan["minutes_down"] > 0
    assert "{" not in "".join(each["problem"] for each in plan["incompatibilities"]).replace(
        "{role}\\n{content}", ""
    )


@pytest.mark.parametrize("language", ["ru", "en"])
def test_the_page_is_well_formed_and_escaped(application: Path, language: Language) -> None:
    (application / "saiga<b>.sh").write_text("echo $SAIGA_N_CTX # <script>\n")
    page = render(plan_of(application, language), "plan.html")
    assert "<script>" not in page
    assert "saiga&lt;b&gt;.sh" in page

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("meta", "hr"):
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    tags = Tags()
    tags.feed(page)
    assert tags.open == []


def test_it_holds_no_secret_that_stands_beside_a_setting(application: Path) -> None:
    plan = plan_of(application)
    assert "secret#1" not in json.dumps(plan) + render(plan, "plan.md") + render(plan, "plan.html")


def test_obstacles_are_named_and_only_then(application: Path) -> None:
    assert plan_of(application)["warnings"] == []
    small = plan_of(application, "en", memory_bytes=8 * 10**9, disk_free_bytes=10**9)["warnings"]
    assert len(small) == 2
    assert "1.0 GB are free on disk" in small[0]
    assert "Memory is 8.0 GB" in small[1]


def test_memory_is_an_incompatibility_only_where_it_is_short(application: Path) -> None:
    def problems(memory: int) -> str:
        plan = plan_of(application, "en", memory_bytes=memory)
        return " ".join(each["problem"] for each in plan["incompatibilities"])

    assert "do not fit into memory together" in problems(16 * 10**9)
    assert "do not fit into memory together" not in problems(64 * 10**9)


def test_the_command_writes_it_and_changes_nothing(application: Path, tmp_path: Path) -> None:
    before = picture(application)
    folder = tmp_path / "plan"
    arguments = ["migrate", "plan", str(application), "-o", str(folder), "--client", str(CLIENT)]
    answer = CliRunner().invoke(main, [*arguments, "--json"])
    report = json.loads(answer.stdout)
    assert (answer.exit_code, report["ok"]) == (0, True)
    assert (folder / "plan.md").read_text().startswith("# План перехода")
    assert report["written"] == [str(folder / "plan.md"), str(folder / "plan.html")]
    assert f"--archive {application}-archive" in (folder / "plan.md").read_text()
    assert picture(application) == before
    assert CliRunner().invoke(main, arguments[:3]).exit_code == 2
