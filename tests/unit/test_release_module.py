"""The order of releases, the way back, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "releases").mkdir()
    return tmp_path


def install(root: Path, identity: str, socket: str = "8080") -> None:
    folder = root / "releases" / identity
    folder.mkdir()
    (folder / "vistrald.socket").write_text(socket)
    (folder / "release.json").write_text(json.dumps({"id": identity}))


def deploy(module: ModuleType, root: Path, *identities: str) -> None:
    for identity in identities:
        install(root, identity)
        module.activate(root, identity)


def test_activation_switches_the_symlink_and_says_what_was_left(release_module, root):
    deploy(release_module, root, "a")
    install(root, "b")
    answer = release_module.activate(root, "b")
    assert answer == {"changed": True, "left": "a"}
    assert (root / "current").resolve() == root / "releases" / "b"


def test_activating_the_current_release_changes_nothing(release_module, root):
    deploy(release_module, root, "a", "b")
    assert release_module.activate(root, "b")["changed"] is False
    assert [r.activation for r in release_module.load(root)] == [1, 2]


def test_a_release_that_is_not_complete_is_refused(release_module, root):
    deploy(release_module, root, "a")
    (root / "releases" / "half").mkdir()
    with pytest.raises(
        release_module.RefusedError, match=r"no complete release half.*there are: a"
    ):
        release_module.activate(root, "half")
    assert release_module.current(root) == "a"


@pytest.mark.requirement("8.5")
def test_rollback_returns_to_the_one_before_and_marks_the_bad_one(release_module, root):
    deploy(release_module, root, "a", "b", "c")
    answer = release_module.rollback(root, "wrong\nanswers", allow_none=False)
    assert answer["left"] == "c"
    assert release_module.current(root) == "b"
    assert {r.id: r.bad for r in release_module.load(root)}["c"] == "wrong answers"


def test_rollback_follows_activation_not_names_or_clocks(release_module, root):
    deploy(release_module, root, "z", "a", "m")
    release_module.activate(root, "z")
    release_module.rollback(root, "r", allow_none=False)
    assert release_module.current(root) == "m"


def test_rollback_skips_releases_that_are_bad(release_module, root):
    deploy(release_module, root, "a", "b")
    release_module.rollback(root, "r", allow_none=False)
    deploy(release_module, root, "c")
    release_module.rollback(root, "r", allow_none=False)
    assert release_module.current(root) == "a"


def test_rollback_refuses_at_the_oldest(release_module, root):
    deploy(release_module, root, "a")
    with pytest.raises(release_module.RefusedError, match="a is the oldest release"):
        release_module.rollback(root, "r", allow_none=False)
    assert release_module.current(root) == "a"
    assert release_module.load(root)[0].bad == ""


def test_rollback_without_any_release_is_refused(release_module, root):
    with pytest.raises(release_module.RefusedError, match="nothing to roll back"):
        release_module.rollback(root, "r", allow_none=True)


def test_a_failed_first_deployment_leaves_nothing_current(release_module, root):
    deploy(release_module, root, "a")
    release_module.rollback(root, "died", allow_none=True)
    assert release_module.current(root) is None
    assert not (root / "current").is_symlink()


def test_interrupted_rollback_is_completed_by_the_next(release_module, root):
    deploy(release_module, root, "a", "b")
    release_module.write_text(root / "releases/b/bad", "cut off after the mark")
    release_module.rollback(root, "again", allow_none=False)
    assert release_module.current(root) == "a"


def test_interrupted_activation_leaves_the_way_back_unchanged(release_module, root):
    deploy(release_module, root, "a", "b")
    install(root, "c")
    release_module.write_text(root / "releases/c/activation", "3")  # cut off before the symlink
    assert release_module.before(release_module.load(root), release_module.current(root)) == "a"


def test_what_runs_is_told_from_the_process(release_module, root):
    deploy(release_module, root, "a", "b")
    cwd = root / "cwd"  # as /proc/PID/cwd, whatever path it shows
    cwd.symlink_to(root / "releases/../releases/a")
    assert release_module.running(root, cwd) == "a"
    assert release_module.running(root, Path("/")) is None
    assert release_module.running(root, None) is None


@pytest.mark.parametrize(
    ("runs", "restart", "restart_socket"),
    [("new", False, False), ("same", True, False), ("old", True, True), (None, True, True)],
)
def test_what_is_restarted_follows_from_what_runs(
    release_module, root, runs, restart, restart_socket
):
    install(root, "old", socket="9090")
    install(root, "same")
    install(root, "new")
    expected = {"restart": restart, "restart_socket": restart_socket}
    assert release_module.pending(root, "new", runs) == expected


def test_without_a_current_release_nothing_is_restarted(release_module, root):
    expected = {"restart": False, "restart_socket": False}
    assert release_module.pending(root, None, None) == expected


def test_prune_keeps_the_current_one_and_its_way_back(release_module, root):
    deploy(release_module, root, "a", "b", "c", "d", "e")
    assert release_module.prune(root, 0, remove=True)["removed"] == ["a", "b", "c"]
    assert sorted(p.name for p in (root / "releases").iterdir()) == ["d", "e"]


def test_prune_removes_what_an_interruption_left(release_module, root):
    deploy(release_module, root, "a", "b")
    (root / "releases/half/venv").mkdir(parents=True)
    assert release_module.prune(root, 3, remove=True)["removed"] == ["half"]
    assert not (root / "releases/half").exists()


def test_prune_in_check_mode_removes_nothing(release_module, root):
    deploy(release_module, root, "a", "b", "c")
    assert release_module.prune(root, 0, remove=False)["changed"] is True
    assert len(release_module.load(root)) == 3


def test_a_release_that_was_left_can_be_marked_bad_and_the_current_one_not(release_module, root):
    deploy(release_module, root, "a", "b")
    release_module.mark(root, "a", "answers\ngot worse")
    assert {r.id: r.bad for r in release_module.load(root)} == {"a": "answers got worse", "b": ""}
    for identity in ("b", "none"):
        with pytest.raises(release_module.RefusedError, match="is not marked bad"):
            release_module.mark(root, identity, "r")


def test_check_mode_never_switches(release_module, root):
    deploy(release_module, root, "a")
    install(root, "b")
    params = {"root": root, "action": "activate", "id": "b"}
    assert release_module.run(params, None, check_mode=True)["current"] == "a"
