"""`up` twice, labs side by side, and that `down` leaves nothing, whatever has happened."""

import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from lab import Lab, LabError

pytestmark = pytest.mark.host


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_the_command_line_from_up_to_down(leftovers: Any) -> None:
    port = str(free_port())
    first = cli("up", "lab-cli", "web", "--memory", "512M")
    assert "Booting host web of lab lab-cli at 10.77.0.11" in first.stdout, first.stderr
    again = cli("up", "lab-cli", "web")
    assert again.stdout == "Host web of lab lab-cli already runs at 10.77.0.11.\n"
    assert "exists with memory 536870912, not 1048576" in (
        cli("up", "lab-cli", "web", "--memory", "1M").stderr
    )
    assert "lab-cli\tweb\t10.77.0.11\tup\n" in cli("list").stdout
    assert cli("exec", "lab-cli", "web", "--", "sh", "-c", "echo hi; exit 3").returncode == 3
    assert cli("exec", "lab-cli", "web", "--", "echo", "a  b").stdout == "a  b\n"
    assert cli("forward", "lab-cli", "web", "22", port).returncode == 0
    with socket.create_connection(("127.0.0.1", int(port)), 5) as client:
        assert client.recv(99).startswith(b"SSH-2.0")
    assert (
        f"cannot listen on 127.0.0.1:{port}" in cli("forward", "lab-cli", "web", "80", port).stderr
    )
    assert "has no host 'db' (its hosts: web)" in cli("exec", "lab-cli", "db", "--", "true").stderr
    assert leftovers.of("lab-cli")
    assert cli("down", "lab-cli").returncode == 0
    assert leftovers.of("lab-cli") == set()
    assert cli("down", "lab-cli").returncode == 0


@pytest.mark.parametrize("victim", ["hosts/a/console.pid", "proxy.pid", "every process"])
def test_down_after_kill_9_leaves_nothing(leftovers: Any, victim: str) -> None:
    lab = Lab("lab-kill")
    lab.up("a")
    if victim == "every process":
        pids = [process.split()[0] for process in leftovers.processes("lab-kill")]
    else:
        pids = [(lab.folder / victim).read_text().split()[0]]
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    lab.down()
    assert leftovers.of("lab-kill") == set()


def test_up_mends_what_was_killed(leftovers: Any) -> None:
    with Lab("lab-kill") as lab:
        [host] = lab.up("a")
        for pid in leftovers.processes("lab-kill"):
            os.kill(int(pid.split()[0]), signal.SIGKILL)
        lab.up("a")
        host.run(["apt-get", "update"])


def test_labs_side_by_side_are_apart(leftovers: Any) -> None:
    with Lab("lab-one") as one, Lab("lab-two") as two:
        [a], [b] = one.up("web"), two.up("web")
        assert a.address == b.address
        a.run(["touch", "/root/one"])
        assert b.run(["test", "-e", "/root/one"], check=False).returncode == 1
        one.down()
        b.run(["true"])
        with pytest.raises(LabError, match="lab lab-one has no host 'web'"):
            one.host("web")
    assert leftovers.of("lab-one") | leftovers.of("lab-two") == set()


def test_without_root_the_remedy_is_named() -> None:
    command = [sys.executable, "-c", "import os, lab.cli; os.setuid(65534); lab.cli.main()"]
    done = subprocess.run([*command, "list"], capture_output=True, text=True, check=False)
    assert "making hosts needs root, not user id 65534: run it as root or by sudo" in done.stderr
