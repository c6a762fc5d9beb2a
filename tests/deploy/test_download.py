"""The model role against the tests' own hub: whatever that does, nothing corrupt is installed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from lab import Host, Lab
from tests.deploy.model_server import TOKEN, Hub, serving

pytestmark = [pytest.mark.host, pytest.mark.requirement("4.1")]

PLAY = "tests/deploy/model_role.yml"
ROOT = "/var/lib/vistral/models"
BYTES = random.Random(1).randbytes(6 << 20)
PIN = hashlib.sha256(BYTES).hexdigest()
FETCH = "/usr/local/lib/vistral/vistral_fetch.py"


@pytest.fixture(scope="module")
def hub(lab: Lab, host: Host) -> Iterator[Hub]:
    with serving(lab.name) as hub:
        hub.files["m.gguf"] = BYTES
        yield hub


def entry(*urls: str, sha256: str = PIN, **more: Any) -> dict[str, Any]:
    """Variables of a model of one file with these addresses."""
    pin = {"file": "m.gguf", "size": len(BYTES), "sha256": sha256, "urls": list(urls)}
    return {"model_name": "m", "model_catalogue_site": {"m": {"files": [pin]}}} | more


def listing(host: Host) -> list[str]:
    return host.run(["sh", "-c", f"ls {ROOT} 2>/dev/null || true"]).stdout.split()


def digest(host: Host, file: str) -> str:
    return host.run(["sha256sum", f"{ROOT}/{file}"]).stdout.split()[0]


PLACED = f"m-{PIN[:12]}.gguf"


def test_a_gated_file_behind_a_proxy_after_a_dead_mirror(host, hub, play):
    variables = entry(
        f"{hub.url}/gone/m.gguf",
        f"{hub.url}/gated/m.gguf",
        model_token=TOKEN,
        model_token_origins=[hub.url],
        model_proxy=hub.url,
    )
    result = play(PLAY, host, **variables)
    assert result.ok, result.text
    assert digest(host, PLACED) == PIN
    assert listing(host) == [PLACED, f"{PLACED}.verified"]
    assert "100%, 0.01 of 0.01 GB" in result.output
    assert all(request["proxied"] for request in hub.requests)
    # The token goes to its own origin; where the redirection leads gets none.
    assert {r["token"] for r in hub.of("gated")} == {f"Bearer {TOKEN}"}
    assert {r["token"] for r in hub.of("signed")} == {""}
    assert TOKEN not in result.record
    assert "s3cr3t" not in result.record
    found = ["grep", "-rlF", "--exclude-dir=proc", TOKEN, "/run", "/var", "/etc", "/usr/local"]
    assert host.run([*found, "/root"], check=False).stdout == ""
    assert host.run(["ls", "/run/vistral-fetch"]).stdout.split() == [
        f"vistral-fetch-{PLACED}.service.json"
    ]

    asked = len(hub.requests)
    again = play(PLAY, host, **variables)
    assert again.changed == []
    assert len(hub.requests) == asked


def test_wrong_bytes_are_removed_and_told(host, hub, play):
    wrong = "0" * 64
    result = play(PLAY, host, **entry(f"{hub.url}/plain/m.gguf", sha256=wrong))
    assert not result.ok
    assert f"its sha256 is {PIN}, expected {wrong}" in result.text
    assert "The file was removed and nothing was installed" in result.text
    assert [name for name in listing(host) if "000000000000" in name] == []


def test_the_disk_is_looked_at_before_a_byte_is_fetched(host, hub, play):
    asked = len(hub.requests)
    variables = entry(f"{hub.url}/plain/m.gguf", model_root="/srv/models")
    result = play(PLAY, host, model_disk_reserve_bytes=10**15, **variables)
    assert not result.ok
    assert "0.01 GB are needed in /srv/models" in result.text
    assert "are free, of which 1000000.00 GB (model_disk_reserve_bytes) must stay" in result.text
    assert "Nothing was fetched. There lie: nothing" in result.text
    assert len(hub.requests) == asked


def test_a_split_model_is_placed_side_by_side_and_verified_whole(host, hub, play):
    parts = [BYTES[: 2 << 20], BYTES[2 << 20 :]]
    pins = []
    for number, part in enumerate(parts, 1):
        name = f"big-{number:05}-of-00002.gguf"
        hub.files[name] = part
        sha256 = hashlib.sha256(part).hexdigest()
        pins.append({"file": name, "size": len(part), "sha256": sha256})
    variables = {
        "model_name": "big",
        "model_catalogue_site": {"big": {"files": pins}},
        "model_source": {"urls": [f"{hub.url}/gone/", f"{hub.url}/plain/"]},
        "model_root": "/srv/split",
    }
    result = play(PLAY, host, **variables)
    assert result.ok, result.text
    names = host.run(["sh", "-c", "cd /srv/split && ls *.gguf"]).stdout.split()
    prefix = names[0].removesuffix("-00001-of-00002.gguf")
    assert names == [f"{prefix}-{n:05}-of-00002.gguf" for n in (1, 2)]
    whole = host.run(["sh", "-c", "cat /srv/split/*.gguf | sha256sum"]).stdout.split()[0]
    assert whole == PIN

    host.run(["sh", "-c", f"printf X | dd of=/srv/split/{names[1]} bs=1 seek=9 conv=notrunc"])
    result = play(PLAY, host, **variables)
    assert result.ok, result.text
    assert host.run(["sh", "-c", "cat /srv/split/*.gguf | sha256sum"]).stdout.split()[0] == PIN
    assert play(PLAY, host, **variables).changed == []


def test_a_folder_of_ones_own_on_host_and_controller(host, hub, play, tmp_path):
    (tmp_path / "m.gguf").write_bytes(BYTES)
    offline = {"model_root": "/srv/offline", "model_source": {"controller_path": f"{tmp_path}/"}}
    asked = len(hub.requests)
    result = play(PLAY, host, **entry(**offline))
    assert result.ok, result.text
    host.run(["sh", "-c", "mkdir -p /srv/usb && cp /srv/offline/*.gguf /srv/usb/m.gguf"])
    offline = {"model_root": "/srv/offline2", "model_source": {"path": "/srv/usb/"}}
    result = play(PLAY, host, **entry(**offline))
    assert result.ok, result.text
    sums = host.run(["sh", "-c", "sha256sum /srv/offline*/*.gguf"]).stdout.split()
    assert sums[::2] == [PIN, PIN]
    assert len(hub.requests) == asked


def test_a_playbook_that_was_cut_off_finds_the_download_at_work(host, hub, play):
    """The first run is ended in the middle; the unit goes on, and the second run watches it."""
    variables = entry(
        f"{hub.url}/slow/m.gguf",
        model_root="/srv/cut",
        model_download_connections=1,
        model_token=TOKEN,
        model_token_origins=[hub.url],
    )
    # Our request for one byte, and aria2's.
    first = play(PLAY, host, cancel=lambda: len(hub.of("slow")) == 2, **variables)
    assert first.status == "canceled"
    unit = f"vistral-fetch-{PLACED}.service"
    assert host.run(["systemctl", "is-active", unit]).stdout.strip() == "active"
    # While the token is in use, no process and no unit shows it.
    show = f"cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; systemctl show {unit}"
    shown = host.run(["sh", "-c", f"{{ {show}; }} | tr '\\0' ' '"]).stdout
    assert "aria2c --no-conf=true --input-file=-" in shown
    assert TOKEN not in shown
    result = play(PLAY, host, **variables)
    assert result.ok, result.text
    # Nothing was asked for anew.
    assert [request["token"] for request in hub.of("slow")] == [f"Bearer {TOKEN}"] * 2


class Fetching:
    """The program alone on the host, as its unit runs it: the servers' faults, one by one."""

    def __init__(self, host: Host, hub: Hub) -> None:
        self.host, self.hub = host, hub

    def __call__(self, *behaviours: str, part: str = "x.part", **more: Any) -> dict[str, Any]:
        job = {
            "urls": [f"{self.hub.url}/{behaviour}/m.gguf" for behaviour in behaviours],
            "part": f"/srv/alone/{part}",
            "size": len(BYTES),
            "token": "",
            "token_origins": [],
            "proxy": "",
            "limit": "0",
            "connections": 2,
            "retries": 1,
        } | more
        self.host.run(["mkdir", "-p", "/srv/alone"])
        self.host.run(["tee", "/srv/alone/job"], input=json.dumps(job))
        self.hub.requests.clear()
        self.hub.asked.clear()
        command = ["python3", FETCH, "/srv/alone/job", "/srv/alone/status.json"]
        self.host.run(command, check=False)
        answer: dict[str, Any] = json.loads(self.host.run(["cat", "/srv/alone/status.json"]).stdout)
        return answer

    def sha256(self, part: str = "x.part") -> str:
        found = self.host.run(["sha256sum", f"/srv/alone/{part}"]).stdout.split()[0]
        self.host.run(["sh", "-c", "rm -f /srv/alone/*"])
        return found


@pytest.fixture
def fetching(host: Host, hub: Hub, play: Any) -> Iterator[Fetching]:
    if host.run(["test", "-f", FETCH], check=False).returncode:
        play(PLAY, host, **entry(f"{hub.url}/plain/m.gguf"))
    yield Fetching(host, hub)
    host.run(["rm", "-rf", "/srv/alone"])


@pytest.mark.parametrize("behaviour", ["plain", "noranges", "busy", "cut"])
def test_what_passes_is_overcome(fetching, behaviour):
    answer = fetching(behaviour)
    assert (answer["state"], answer["message"]) == ("done", "")
    assert fetching.sha256() == PIN


@pytest.mark.parametrize("behaviour", ["plain", "noranges"])
def test_a_part_is_resumed_where_the_server_can_and_begun_anew_where_not(fetching, behaviour):
    half = str(len(BYTES) // 2)
    fetching.host.run(["mkdir", "-p", "/srv/alone"])
    source = f"{ROOT}/{PLACED}"
    fetching.host.run(["sh", "-c", f"head --bytes={half} {source} > /srv/alone/x.part"])
    assert fetching(behaviour)["state"] == "done"
    assert fetching.sha256() == PIN
    # Beside our request for one byte and aria2's for the length, which ask from the start.
    asked = [request["range"] for request in fetching.hub.of(behaviour)]
    rest = [each for each in asked if each not in {"", "bytes=0-0"}]
    if behaviour == "plain":
        assert rest
        assert all(int(each[6:].split("-")[0]) >= len(BYTES) // 2 for each in rest)


def test_a_file_of_another_size_is_not_fetched(fetching):
    answer = fetching("short", "plain")
    assert answer["state"] == "done"
    assert len(fetching.hub.of("short")) == 1
    fetching.sha256()
    answer = fetching("short")
    assert answer["state"] == "failed"
    assert f"has {len(BYTES) // 2} bytes, the pin says {len(BYTES)}" in answer["message"]


def test_a_dead_server_is_given_up_within_bounds(fetching):
    answer = fetching("down")
    assert answer["state"] == "failed"
    assert "/down/m.gguf answers 503, which may pass" in answer["message"]
    assert len(fetching.hub.of("down")) <= 3


def test_each_reason_why_a_token_does_not_help_is_told(fetching):
    assert "gated; set model_token" in fetching("gated")["message"]
    foreign = fetching("gated", token=TOKEN, token_origins=["https://huggingface.co"])
    assert "is not in model_token_origins (https://huggingface.co)" in foreign["message"]
    assert {request["token"] for request in fetching.hub.requests} == {""}
    wrong = fetching("gated", token="hf_wrong", token_origins=[fetching.hub.url])
    assert "wrong or expired" in wrong["message"]
    assert "hf_wrong" not in json.dumps(wrong)
    torn = fetching("gated", token="hf_x\nhf_y", token_origins=[fetching.hub.url])
    assert "model_token has a space or a line break inside" in torn["message"]
    assert "hf_x" not in json.dumps(torn)


def test_the_limit_limits(fetching):
    answer = fetching("plain", limit="2M", connections=1)
    assert answer["state"] == "done"
    assert answer["seconds"] > 2
