import os
from pathlib import Path

import pytest

from vistrald.cgroup import memory_limit, memory_used, usable_cores


@pytest.fixture
def groups(tmp_path: Path) -> tuple[Path, Path]:
    """An own-groups file and a hierarchy's root to fill."""
    return tmp_path / "cgroup", tmp_path / "root"


def fill(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("many_cores")
def test_v2_takes_the_tightest_on_the_way_up(groups: tuple[Path, Path]) -> None:
    own, root = groups
    own.write_text("0::/system.slice/vistrald.service\n")
    fill(root / "system.slice", cpu__max="350000 100000", memory__max="max")
    fill(root / "system.slice/vistrald.service", cpu__max="max 100000", memory__max="14000000000")
    assert usable_cores(own, root) == 3
    assert memory_limit(own, root) == 14_000_000_000


@pytest.mark.usefixtures("many_cores")
def test_v1_quota_and_memory(groups: tuple[Path, Path]) -> None:
    own, root = groups
    own.write_text("4:memory:/g\n3:cpu,cpuacct:/g\n")
    fill(root / "cpu/g", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    fill(root / "memory/g", memory__limit_in_bytes="1000000")
    assert usable_cores(own, root) == 2
    assert memory_limit(own, root) == 1_000_000


@pytest.mark.usefixtures("many_cores")
def test_no_limit(groups: tuple[Path, Path]) -> None:
    own, root = groups
    own.write_text("0::/\n3:cpu:/\n")
    fill(root, cpu__max="max 100000")
    fill(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert usable_cores(own, root) == 16
    assert memory_limit(own, root) is None


@pytest.mark.usefixtures("many_cores")
def test_a_quota_below_one_core_still_gives_one(groups: tuple[Path, Path]) -> None:
    own, root = groups
    own.write_text("0::/g\n")
    fill(root / "g", cpu__max="50000 100000")
    assert usable_cores(own, root) == 1


def test_affinity_limits_without_a_quota(
    groups: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, root = groups
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    assert usable_cores(own, root) == 2


def test_used_memory_is_that_of_the_limited_group_without_inactive_file_pages(
    groups: tuple[Path, Path],
) -> None:
    own, root = groups
    own.write_text("0::/a/b\n")
    fill(root / "a/b", memory__max="max", memory__current="1")
    assert memory_used(own, root) is None
    fill(root / "a", memory__max="900", memory__current="700")
    fill(root / "a", memory__stat="anon 500\ninactive_file 150\nactive_file 50")
    assert memory_used(own, root) == 550
    own.write_text("4:memory:/g\n")
    fill(root / "memory/g", memory__limit_in_bytes="900", memory__usage_in_bytes="800")
    fill(root / "memory/g", memory__stat="inactive_file 1\ntotal_inactive_file 300")
    assert memory_used(own, root) == 500
