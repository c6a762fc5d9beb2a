"""What is real in a container."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Host, Lab

pytestmark = pytest.mark.host

LIMIT = 300 << 20


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("lab-test") as lab:
        lab.up("plain", "peer")
        lab.up("small", memory=LIMIT, tmpfs={"/var/lib/small": 8 << 20})
        yield lab


@pytest.fixture(scope="module")
def plain(lab: Lab) -> Host:
    return lab.host("plain")


@pytest.fixture(scope="module")
def small(lab: Lab) -> Host:
    return lab.host("small")


def test_systemd_is_pid_1_and_all_units_run(lab: Lab) -> None:
    for host in lab.hosts:
        assert host.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
        state = host.run(["systemctl", "is-system-running", "--wait"], check=False).stdout
        assert state == "running\n", host.run(["systemctl", "--failed"]).stdout


def test_hosts_see_each_other_by_name_and_nothing_else(lab: Lab, plain: Host) -> None:
    assert [host.address for host in lab.hosts] == ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
    plain.run(["ping", "-c1", "-W2", "peer"])
    begin = time.monotonic()
    assert plain.run(["curl", "-sS", "http://192.0.2.1/"], check=False).returncode == 7
    assert time.monotonic() - begin < 2, "an attempt to leave the lab must fail at once"


def test_a_package_installs_through_the_proxy(plain: Host) -> None:
    plain.run(["apt-get", "update"])
    plain.run(["apt-get", "install", "--yes", "hello"])
    assert plain.run(["hello"]).stdout == "Hello, world!\n"


def test_the_proxy_knows_only_package_servers(plain: Host) -> None:
    curl = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-x", "http://10.77.0.1:3128"]
    assert plain.run([*curl, "http://intranet.example/"]).stdout == "403"
    tunnel = plain.run([*curl, "https://intranet.example/"], check=False)
    assert tunnel.returncode == 56, "curl's code for a proxy that refuses CONNECT"


def test_memory_max_kills_at_the_limit(plain: Host) -> None:
    take = ["python3", "-c", "b = bytearray(100 << 20)"]
    unit = ["systemd-run", "--wait", "--quiet"]
    assert plain.run([*unit, "-p", "MemoryMax=200M", *take], check=False).returncode == 0
    assert plain.run([*unit, "-p", "MemoryMax=50M", *take], check=False).returncode != 0


def test_sandbox_options_forbid(plain: Host) -> None:
    run = ["systemd-run", "--wait", "--quiet"]
    ping = ["ping", "-c1", "-W1", "127.0.0.1"]
    assert plain.run([*run, *ping], check=False).returncode == 0
    assert plain.run([*run, "-p", "IPAddressDeny=any", *ping], check=False).returncode != 0
    mount = ["mount", "-t", "tmpfs", "none", "/mnt"]
    assert plain.run([*run, *mount], check=False).returncode == 0
    assert plain.run([*run, "-p", "SystemCallFilter=~@mount", *mount], check=False).returncode != 0


def test_cpu_quota_slows(plain: Host) -> None:
    spin = """
import time
begin = time.monotonic()
while time.process_time() < 0.3: pass
print(time.monotonic() - begin)
"""
    run = ["systemd-run", "--pipe", "--wait", "--quiet", "-p", "CPUQuota=20%"]
    seconds = float(plain.run([*run, "python3", "-c", spin]).stdout)
    assert seconds > 1, "0.3 s of work at a fifth of a processor"


def test_a_socket_starts_its_service(lab: Lab, plain: Host) -> None:
    units = {
        "greet.socket": "[Socket]\nListenStream=7000\nAccept=yes\n",
        "greet@.service": "[Service]\nExecStart=/bin/echo greetings\nStandardOutput=socket\n",
    }
    for name, text in units.items():
        plain.run(["tee", f"/etc/systemd/system/{name}"], input=text)
    plain.run(["systemctl", "daemon-reload"])
    plain.run(["systemctl", "start", "greet.socket"])
    read = "import socket; print(socket.create_connection(('plain', 7000), 5).recv(99).decode())"
    assert "greetings" in lab.host("peer").run(["python3", "-c", read]).stdout


def test_a_stream_passes_the_forward_as_it_comes(lab: Lab, plain: Host) -> None:
    server = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for word in (b"first", b"second"):
            self.wfile.write(word + b"\\n")
            self.wfile.flush()
            time.sleep(1)
http.server.HTTPServer(("", 7001), Handler).serve_forever()
"""
    plain.run(["systemd-run", "--unit=stream", "python3", "-c", server])
    wait = "until echo > /dev/tcp/127.0.0.1/7001; do sleep 0.05; done"
    plain.run(["bash", "-c", wait])
    with (
        lab.forward("plain", 7001) as forward,
        urllib.request.urlopen(forward.url, timeout=10) as answer,
    ):
        assert answer.readline() == b"first\n"
        first = time.monotonic()
        assert answer.readline() == b"second\n"
        assert time.monotonic() - first > 0.7


def test_a_forward_to_nothing_closes_the_connection(lab: Lab) -> None:
    with lab.forward("plain", 7999) as forward, pytest.raises(OSError, match=r"closed|reset"):
        urllib.request.urlopen(forward.url, timeout=10)


def test_a_host_can_read_and_not_exceed_its_memory_limit(small: Host, plain: Host) -> None:
    read = ["cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
    if plain.run(["test", "-e", read[1]], check=False).returncode:
        read = ["cat", "/sys/fs/cgroup/memory.max"]
    assert small.run(read).stdout == f"{LIMIT}\n"
    assert plain.run(read).stdout in {"max\n", "9223372036854771712\n"}
    take = ["python3", "-c", "b = bytearray(400 << 20)"]
    assert small.run(take, check=False).returncode != 0
    assert plain.run(take, check=False).returncode == 0


def test_a_small_disk_gets_full(small: Host) -> None:
    write = ["dd", "if=/dev/zero", "of=/var/lib/small/file", "bs=1M", "count=9"]
    assert "No space left on device" in small.run(write, check=False).stderr


def test_venv_works_without_a_network(plain: Host) -> None:
    plain.run(["python3", "-m", "venv", "/root/venv"])
    assert "pip" in plain.run(["/root/venv/bin/pip", "--version"]).stdout


def test_what_could_change_the_machine_is_denied(plain: Host) -> None:
    for command in (["sysctl", "-w", "vm.swappiness=1"], ["date", "--set=now"]):
        assert plain.run(command, check=False).returncode != 0


def test_reboot_keeps_disk_address_and_limit(small: Host) -> None:
    small.run(["touch", "/root/kept"])
    small.reboot()
    small.run(["test", "-e", "/root/kept"])
    take = ["python3", "-c", "b = bytearray(400 << 20)"]
    assert small.run(take, check=False).returncode != 0


def test_ansible_reboots_a_host(lab: Lab, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps(lab.inventory()))
    ansible = Path(sys.executable).with_name("ansible")
    done = subprocess.run(
        [ansible, "-i", inventory, "plain", "-m", "ansible.builtin.reboot"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"rebooted": true' in done.stdout


def test_a_host_that_was_switched_off_comes_up_with_its_disk(lab: Lab, plain: Host) -> None:
    plain.run(["touch", "/root/kept"])
    plain.stop()
    assert not plain.is_running
    lab.up("plain")
    plain.run(["test", "-e", "/root/kept"])
