"""What is real in a virtual machine and not in a container."""

from collections.abc import Iterator
from typing import Any

import pytest

from lab import Host, Lab

pytestmark = [pytest.mark.host, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(leftovers: Any) -> Iterator[Lab]:
    with Lab("lab-vm") as lab:
        lab.up("kernel", vm=True, memory=768 << 20, disk=2 << 30)
        lab.up("container")
        yield lab
    assert leftovers.of("lab-vm") == set()


@pytest.fixture
def vm(lab: Lab) -> Host:
    return lab.host("kernel")


def test_all_units_run(vm: Host) -> None:
    state = vm.run(["systemctl", "is-system-running", "--wait"], check=False).stdout
    assert state == "running\n", vm.run(["systemctl", "--failed"]).stdout


def test_memory_and_disk_are_as_asked(vm: Host) -> None:
    kibibytes = int(vm.run(["awk", "/MemTotal/ {print $2}", "/proc/meminfo"]).stdout)
    assert 0.85 * 768 < kibibytes / 1024 < 768
    mebibytes = int(vm.run(["df", "--block-size=M", "--output=size", "/"]).stdout.split()[1][:-1])
    assert 0.9 * 2048 < mebibytes < 2048


def test_vm_and_container_see_each_other_and_packages(lab: Lab, vm: Host) -> None:
    vm.run(["ping", "-c1", "-W5", "10.77.0.12"])
    lab.host("container").run(["ping", "-c1", "-W5", "kernel"])
    vm.run(["apt-get", "install", "--yes", "hello"])


def test_an_oom_kill_has_its_name(vm: Host) -> None:
    take = ["python3", "-c", "b = bytearray(200 << 20)"]
    unit = ["systemd-run", "--wait", "-p", "MemoryMax=50M", "-p", "MemorySwapMax=0", *take]
    assert "Finished with result: oom-kill" in vm.run(unit, check=False).stderr


def test_swap_and_sysctl_survive_a_reboot(vm: Host) -> None:
    vm.run(["fallocate", "-l", "64M", "/swapfile"])
    vm.run(["chmod", "600", "/swapfile"])
    vm.run(["mkswap", "/swapfile"])
    vm.run(["tee", "-a", "/etc/fstab"], input="/swapfile none swap sw 0 0\n")
    vm.run(["tee", "/etc/sysctl.d/90-test.conf"], input="vm.swappiness = 7\n")
    vm.run(["swapon", "--all"])
    vm.run(["sysctl", "--system"])
    state = ["sh", "-c", "swapon --show=NAME --noheadings; sysctl -n vm.swappiness"]
    assert vm.run(state).stdout == "/swapfile\n7\n"
    vm.reboot()
    assert vm.run(state).stdout == "/swapfile\n7\n"
