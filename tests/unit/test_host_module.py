"""What preflight measures, from texts that real machines print."""

from __future__ import annotations

from pathlib import Path

import pytest

MEMINFO = "MemTotal:       16384000 kB\nMemFree:        1000 kB\n"


def test_memory_is_what_the_kernel_shows(host_module):
    assert host_module.memory_bytes(MEMINFO, []) == 16384000 * 1024


@pytest.mark.parametrize("unlimited", ["max\n", "9223372036854771712\n"])
def test_no_cgroup_limit_in_either_version(host_module, unlimited):
    assert host_module.memory_bytes(MEMINFO, [unlimited]) == 16384000 * 1024


def test_a_smaller_cgroup_limit_counts(host_module):
    assert host_module.memory_bytes(MEMINFO, ["2147483648\n"]) == 2 << 30


def test_cpu_flags_of_the_first_cpu(host_module):
    text = "processor : 0\nflags\t\t: fpu avx2 fma\n\nprocessor : 1\nflags\t\t: fpu\n"
    assert host_module.cpu_flags(text) == ["fpu", "avx2", "fma"]


def test_free_space_of_a_path_that_is_not_there_yet(host_module, tmp_path: Path):
    missing = tmp_path / "a/b/c"
    assert host_module.free_bytes(missing) == pytest.approx(
        host_module.free_bytes(tmp_path), rel=0.05
    )


def test_what_is_deployed_counts_as_free(host_module, tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/m.gguf").write_bytes(b"x" * 5_000_000)
    assert host_module.tree_bytes(tmp_path) >= 5_000_000


def test_the_daemons_own_socket_is_not_a_foreign_listener(host_module):
    own = host_module.own_ports("127.0.0.1:8080 (Stream)\n[::1]:9090 (Stream)\n")
    assert own == {8080, 9090}
    assert host_module.foreign_listener(8080, lambda _: "LISTEN ...", own) == ""


def test_a_foreign_listener_is_named(host_module):
    line = 'LISTEN 0 5 0.0.0.0:8080 0.0.0.0:* users:(("nginx",pid=77,fd=6))\n'
    assert host_module.foreign_listener(8080, lambda _: line, set()) == "nginx (pid 77)"
    assert host_module.foreign_listener(8080, lambda _: "", set()) == ""
