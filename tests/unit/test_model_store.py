"""Room for models, which of them may go, and which was there before."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest


class Store:
    """A folder of models and one of releases, as roles leave them."""

    def __init__(self, root: Path, releases: Path) -> None:
        self.root, self.releases = root, releases
        self.activations = 0
        root.mkdir()
        releases.mkdir()

    def model(self, name: str, size: int = 10) -> str:
        path = self.root / f"{name}.gguf"
        path.write_bytes(b"x" * size)
        stamp = path.with_name(path.name + ".verified")
        stamp.write_text("{}")
        return str(path)

    def release(self, identity: str, model: str, sha256: str = "") -> None:
        folder = self.releases / identity
        folder.mkdir()
        self.activations += 1
        (folder / "activation").write_text(f"{self.activations}\n")
        (folder / "release.json").write_text("{}")
        path = self.root / f"{model}.gguf"
        (folder / "vistrald.toml").write_text(
            f'[model]\nname = "{model}"\npath = "{path}"\nsha256 = "{sha256 or model}"\nsize = 10\n'
        )
        link = self.releases.parent / "current"
        link.unlink(missing_ok=True)
        link.symlink_to(f"releases/{identity}")

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", tmp_path / "releases")


def test_a_model_that_a_release_needs_is_never_pruned(model_store: ModuleType, store: Store):
    for name in ("a", "b", "c"):
        store.model(name)
        store.release(f"r-{name}", name)
    answer = model_store.prune(store.root, store.releases, 0, remove=True)
    assert (answer["changed"], answer["removed"]) == (False, [])
    assert "a.gguf 0.00 GB (needed by r-a)" in answer["text"]


def test_the_oldest_spare_models_go_beyond_the_count(model_store, store):
    for at, name in enumerate(("old", "mid", "new", "now")):
        path = store.model(name)
        os.utime(path + ".verified", (at, at))
    store.release("r", "now")
    answer = model_store.prune(store.root, store.releases, 1, remove=False)
    assert answer["removed"] == ["mid.gguf", "old.gguf"]
    assert len(store.names()) == 8
    model_store.prune(store.root, store.releases, 1, remove=True)
    assert store.names() == ["new.gguf", "new.gguf.verified", "now.gguf", "now.gguf.verified"]


def test_models_of_kept_releases_count(model_store, store):
    for name in ("spare", "before", "now"):
        store.model(name)
    store.release("r1", "before")
    store.release("r2", "now")
    answer = model_store.prune(store.root, store.releases, 1, remove=True)
    assert answer["removed"] == ["spare.gguf"]


def test_a_split_model_goes_whole_and_an_incomplete_one_is_left_alone(model_store, store):
    for number in (1, 2):
        store.model(f"s-{number:05}-of-00002")
    store.model("t-00001-of-00002")
    answer = model_store.prune(store.root, store.releases, 0, remove=True)
    assert answer["removed"] == ["s-00001-of-00002.gguf", "s-00002-of-00002.gguf"]
    assert store.names() == ["t-00001-of-00002.gguf", "t-00001-of-00002.gguf.verified"]


def test_what_a_part_has_already_is_not_needed_again(model_store, store):
    part = store.root / "m.gguf.part"
    part.write_bytes(b"x" * (1 << 20))
    files = [{"part": str(part), "size": 3 << 20}]
    needed = model_store.room(store.root, store.releases, files, 0)["needed"]
    assert 0 < needed <= 2 << 20


def test_too_little_room_is_told_with_figures_and_what_lies_there(model_store, store):
    store.model("a")
    store.release("r-a", "a")
    files = [{"part": str(store.root / "m.part"), "size": 10**15}]
    with pytest.raises(model_store.RefusedError) as error:
        model_store.room(store.root, store.releases, files, 10**9)
    text = str(error.value)
    assert f"1000000.00 GB are needed in {store.root}" in text
    assert "1.00 GB (model_disk_reserve_bytes) must stay" in text
    assert "a.gguf 0.00 GB (needed by r-a)" in text


def test_room_is_looked_for_where_the_folder_would_be(model_store, tmp_path):
    answer = model_store.room(tmp_path / "none/yet", tmp_path / "releases", [], 0)
    assert answer["needed"] == 0


@pytest.mark.requirement("8.5")
def test_the_former_model_is_that_of_the_last_good_release_with_another(model_store, store):
    for name in ("a", "b", "c"):
        store.model(name)
    store.release("r1", "a")
    store.release("r2", "b")
    store.release("r3", "c")
    (store.releases / "r2/bad").write_text("it lied")
    store.release("r4", "c")
    answer = model_store.former(store.root, store.releases)
    assert answer["model"]["name"] == "a"
    assert answer["model"]["release"] == "r1"
    assert (answer["left"]["release"], answer["left"]["name"]) == ("r4", "c")


def test_without_a_former_model_nothing_is_done(model_store, store):
    store.model("a")
    store.release("r1", "a")
    store.release("r2", "a")
    with pytest.raises(model_store.RefusedError, match="there is no former model to return to"):
        model_store.former(store.root, store.releases)


def test_a_former_model_whose_file_is_gone_is_told(model_store, store):
    store.release("r1", "a")
    store.release("r2", "b")
    with pytest.raises(model_store.RefusedError, match=r"a\.gguf does not exist"):
        model_store.former(store.root, store.releases)


def test_a_host_without_releases_is_told(model_store, store):
    with pytest.raises(model_store.RefusedError, match="There is no current release"):
        model_store.former(store.root, store.releases)
