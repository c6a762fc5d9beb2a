"""The host role on a kernel of its own: effects, resize, reboot, removal. A virtual machine."""

from __future__ import annotations

import pytest

from lab import Host, Lab

pytestmark = [pytest.mark.host, pytest.mark.slow]

HOST_PLAY = "tests/deploy/host_role.yml"
SMALL = {"host_swap_size_mb": 64, "host_swappiness": 15, "host_transparent_hugepage": "madvise"}


@pytest.fixture(scope="module")
def vm(lab: Lab) -> Host:
    return lab.up("machine", vm=True, memory=1 << 30, disk=4 << 30)[0]


def kernel(vm: Host) -> dict[str, str]:
    """What the running kernel has, not what files say."""
    paths = {
        "swappiness": "/proc/sys/vm/swappiness",
        "huge": "/proc/sys/vm/nr_hugepages",
        "transparent": "/sys/kernel/mm/transparent_hugepage/enabled",
    }
    values = {name: vm.run(["cat", path]).stdout.strip() for name, path in paths.items()}
    swap = vm.run(["swapon", "--show=NAME,SIZE", "--bytes", "--noheadings"]).stdout.split()
    return values | {"swap": " ".join(swap)}


@pytest.mark.requirement("6.1")
def test_preflight_refuses_a_machine_of_one_gigabyte(vm, play):
    result = play("playbooks/preflight.yml", vm, preflight_memory_mb=16384)
    assert not result.ok
    assert "memory: found" in result.text
    assert "needed 16384 MiB less 7 % = 15237 MiB" in result.text


def test_settings_take_effect_and_a_second_run_changes_nothing(vm, play):
    result = play(HOST_PLAY, vm, **SMALL)
    assert result.ok, result.text
    assert kernel(vm) == {
        "swappiness": "15",
        "huge": "0",
        "transparent": "always [madvise] never",
        "swap": f"/swapfile {(64 << 20) - 4096}",
    }
    assert vm.run(["stat", "--format=%a %U", "/swapfile"]).stdout.strip() == "600 root"
    assert play(HOST_PLAY, vm, **SMALL).changed == []


def test_settings_survive_a_reboot(vm, play):
    before = kernel(vm)
    vm.reboot()
    assert kernel(vm) == before
    assert play(HOST_PLAY, vm, **SMALL).changed == []


def test_a_value_set_by_hand_is_mended(vm, play):
    vm.run(["sysctl", "--write", "vm.swappiness=99"])
    result = play(HOST_PLAY, vm, **SMALL)
    assert result.changed == ["Load the sysctl settings"]
    assert kernel(vm)["swappiness"] == "15"


def test_swap_is_resized_and_an_unfinished_file_is_replaced(vm, play):
    # As a run that was cut off while it wrote the new file leaves it.
    vm.run(["sh", "-c", "head --bytes=1M /dev/zero > /swapfile.new"])
    larger = SMALL | {"host_swap_size_mb": 96, "host_nr_hugepages": 4}
    result = play(HOST_PLAY, vm, **larger)
    assert result.ok, result.text
    assert kernel(vm)["swap"] == f"/swapfile {(96 << 20) - 4096}"
    assert kernel(vm)["huge"] == "4"
    assert vm.run(["ls", "/swapfile.new"], check=False).returncode != 0


def test_a_swap_file_that_would_fill_the_disk_is_refused_before_anything(vm, play):
    result = play(HOST_PLAY, vm, **(SMALL | {"host_swap_size_mb": 900_000}))
    assert not result.ok
    assert "host_swap_size_mb is 900000" in result.text
    assert kernel(vm)["swap"] == f"/swapfile {(96 << 20) - 4096}"


def test_swap_can_be_removed(vm, play):
    result = play(HOST_PLAY, vm, **(SMALL | {"host_swap_size_mb": 0}))
    assert result.ok, result.text
    assert kernel(vm)["swap"] == ""
    assert vm.run(["grep", "swapfile", "/etc/fstab"], check=False).returncode == 1
