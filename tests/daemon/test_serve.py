"""`vistrald serve` as a process: readiness, systemd's protocols, shutdown, faults."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.daemon.helpers import events, wait_until
from vistrald.settings import ModelSection

# The beginning of an answer that goes on for hundreds of tokens.
COUNTING = "<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\n1, 2, 3, 4, 5, 6, 7, 8,"
LONG = {"prompt": COUNTING, "temperature": 0}

# systemd passes sockets from descriptor 3 on, to the process whose id it names.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "vistrald", *sys.argv[2:]])
"""


@dataclass
class Daemon:
    process: subprocess.Popen[bytes]
    config: Path
    url: str
    log: Path

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=10)

    def phase(self) -> str:
        try:
            return str(self.get("/health/ready").json()["phase"])
        except requests.ConnectionError:
            return "unreachable"

    def queue(self) -> Any:
        return self.get("/api/v1/status").json()["queue"]

    def cancelled(self) -> int:
        for line in self.get("/metrics").text.splitlines():
            if line.startswith('vistrald_requests_total{finish_reason="cancelled"}'):
                return int(float(line.split()[1]))
        return 0

    def stream(self, **more: Any) -> requests.Response:
        body = {**LONG, **more}
        return requests.post(self.url + "/api/v1/stream", json=body, stream=True, timeout=60)


class Launcher:
    """Starts daemons and sees to it that none stays behind."""

    def __init__(self, directory: Path, model: ModelSection) -> None:
        self.directory = directory
        self.model = model
        self.daemons: list[Daemon] = []

    def start(
        self, engine: str = "", grace: int = 20, model: ModelSection | None = None, **env: str
    ) -> Daemon:
        """A daemon on a free port, or on `listener`'s socket handed over as systemd does."""
        port = free_port()
        config = self.write_config(port, engine, grace, model or self.model)
        return self.launch([sys.executable, "-m", "vistrald"], config, port, env)

    def start_activated(self, listener: socket.socket, **env: str) -> Daemon:
        port = listener.getsockname()[1]
        config = self.write_config(port, "", 20, self.model)
        command = [sys.executable, "-c", AS_SYSTEMD, str(listener.fileno())]
        return self.launch(command, config, port, env, listener.fileno())

    def launch(
        self, command: list[str], config: Path, port: int, env: dict[str, str], *fds: int
    ) -> Daemon:
        log = config.with_suffix(".log")
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, "serve", "--config", str(config)],
                stderr=stderr,
                env={**os.environ, **env},
                pass_fds=fds,
            )
        daemon = Daemon(process, config, f"http://127.0.0.1:{port}", log)
        self.daemons.append(daemon)
        return daemon

    def write_config(self, port: int, engine: str, grace: int, model: ModelSection) -> Path:
        config = self.directory / f"{len(self.daemons)}.toml"
        config.write_text(
            f'[model]\npath = "{model.path}"\nsha256 = "{model.sha256}"\n'
            f'size = {model.size}\nname = "{model.name}"\nformat = "{model.format}"\n'
            f'[server]\nlisten = "127.0.0.1:{port}"\ngrace_seconds = {grace}\n'
            f"[engine]\nthreads = 1\n{engine}\n"
            f'[generation]\nmax_tokens = 400\n[paths]\nstate_dir = "{self.directory}/state"\n'
            f'[release]\nid = "r1"\n'
        )
        return config

    def ready(self, daemon: Daemon) -> Daemon:
        wait_until(lambda: daemon.process.poll() is not None or daemon.phase() == "ready", 60)
        assert daemon.process.poll() is None, daemon.log.read_text()
        return daemon

    def stop_all(self) -> None:
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def launcher(tmp_path: Path, model_section: ModelSection) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path, model_section)
    yield launcher
    launcher.stop_all()


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, model_section: ModelSection
) -> Iterator[Daemon]:
    """One daemon for the tests that leave it as it was."""
    launcher = Launcher(tmp_path_factory.mktemp("daemon"), model_section)
    yield launcher.ready(launcher.start("parallel_sequences = 2\nqueue_length = 0"))
    launcher.stop_all()


def cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vistrald", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def test_the_real_openai_client(daemon: Daemon) -> None:
    client = openai.OpenAI(base_url=daemon.url + "/v1", api_key="-", max_retries=0)
    assert [model.id for model in client.models.list()] == ["smollm2-135m"]
    request: Any = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "What is theft?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    client.chat.completions.create(**request)  # from here on the prompt is in the prefix cache
    whole = client.chat.completions.create(**request)
    chunks = list(
        client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    assert chunks[-2].choices[0].finish_reason == "length"
    with pytest.raises(openai.NotFoundError, match="one model"):
        client.chat.completions.create(**{**request, "model": "gpt-9"})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**{**request, "temperature": 3})


def test_a_client_that_leaves_a_stream_is_not_computed_for(daemon: Daemon) -> None:
    before = daemon.cancelled()
    stream = daemon.stream()
    next(stream.iter_lines())
    stream.close()
    wait_until(lambda: daemon.cancelled() == before + 1, 5)
    assert daemon.queue()["running"] == 0


def test_a_client_that_leaves_a_whole_answer_is_not_computed_for(daemon: Daemon) -> None:
    before = daemon.cancelled()
    with pytest.raises(requests.ReadTimeout):
        requests.post(daemon.url + "/api/v1/generate", json=LONG, timeout=0.5)
    wait_until(lambda: daemon.cancelled() == before + 1, 5)
    assert daemon.queue()["running"] == 0


def test_a_full_queue_answers_503_at_once(daemon: Daemon) -> None:
    streams = [daemon.stream() for _ in range(2)]
    began = time.monotonic()
    refused = requests.post(daemon.url + "/api/v1/generate", json=LONG, timeout=10)
    assert time.monotonic() - began < 2
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["Retry-After"]) >= 1
    assert daemon.get("/health/ready").status_code == 200
    assert 'finish_reason="queue_full"' in daemon.get("/metrics").text
    for stream in streams:
        stream.close()
    wait_until(lambda: daemon.queue()["running"] == 0, 5)


def test_broken_http_does_not_lose_the_worker(daemon: Daemon) -> None:
    host, port = daemon.url.removeprefix("http://").split(":")
    for raw in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/v1/generate HTTP/1.1\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(raw)
    assert daemon.phase() == "ready"


def test_smoke(daemon: Daemon, tmp_path: Path) -> None:
    good = cli("smoke", "--config", daemon.config, "--timeout", "30", "--json")
    report = json.loads(good.stdout)
    assert (good.returncode, report["ok"]) == (0, True)
    assert [step["name"] for step in report["steps"]] == [
        "live",
        "ready",
        "identity",
        "generation",
    ]
    other = tmp_path / "other.toml"
    other.write_text(daemon.config.read_text().replace('"r1"', '"r2"'))
    bad = cli("smoke", "--config", other, "--timeout", "10", "--json")
    report = json.loads(bad.stdout)
    assert (bad.returncode, report["failed_step"]) == (1, "identity")
    assert "r2" in report["reason"]


def test_smoke_of_nothing(launcher: Launcher, model_section: ModelSection) -> None:
    config = launcher.write_config(free_port(), "", 1, model_section)
    report = json.loads(cli("smoke", "--config", config, "--timeout", "1", "--json").stdout)
    assert (report["ok"], report["failed_step"]) == (False, "live")


def test_ask(daemon: Daemon, tmp_path: Path) -> None:
    context = tmp_path / "law.txt"
    context.write_text("Article 158. Theft is the secret taking of property.", encoding="utf-8")
    result = cli("ask", "--url", daemon.url, "--context-file", context, "Say yes.")
    assert result.returncode == 0, result.stderr
    answer, rates = result.stdout.rsplit("\n\n", 1)
    assert answer.strip()
    assert "tokens at" in rates


def test_socket_activation_and_notification(launcher: Launcher, tmp_path: Path) -> None:
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(tmp_path / "notify"))
    notify.settimeout(60)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        daemon = launcher.start_activated(listener, NOTIFY_SOCKET=str(tmp_path / "notify"))
        # Accepted by the kernel before anybody runs, answered as soon as the worker does.
        early = daemon.get("/health/ready")
        messages = [notify.recv(4096).decode()]
        while "READY=1" not in messages[-1]:
            messages.append(notify.recv(4096).decode())
        assert daemon.get("/health/ready").status_code == 200
    assert (early.status_code, early.json()["status"]) == (503, "not_ready")
    assert early.json()["phase"] in {"starting", "verifying", "loading", "warming"}
    assert not any("Gunicorn" in message for message in messages)
    assert "STATUS=verifying" in messages[0]
    assert "EXTEND_TIMEOUT_USEC=" in messages[0]
    assert "STATUS=serving smollm2-135m" in messages[-1]
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=20) == 0
    assert "STOPPING=1" in notify.recv(4096).decode()


def test_sigterm_lets_a_running_answer_finish(launcher: Launcher) -> None:
    daemon = launcher.ready(launcher.start())
    stream = daemon.stream(max_tokens=60)
    lines = stream.iter_lines()
    next(lines)
    daemon.process.send_signal(signal.SIGTERM)
    text = b"\n".join(lines).decode()
    name, summary = events(text)[-1]
    assert name == "done"
    assert summary["finish_reason"] in {"stop", "length"}
    assert daemon.process.wait(timeout=20) == 0


def test_sigterm_cancels_at_the_end_of_the_grace_time(launcher: Launcher) -> None:
    daemon = launcher.ready(launcher.start(grace=1))
    stream = daemon.stream()
    lines = stream.iter_lines()
    next(lines)
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    name, body = events(b"\n".join(lines).decode())[-1]
    assert (name, body["error"]["code"]) == ("error", "shutting_down")
    assert daemon.process.wait(timeout=20) == 0
    assert 1 <= time.monotonic() - began < 8


def test_sigterm_while_loading(launcher: Launcher) -> None:
    daemon = launcher.start()
    wait_until(lambda: daemon.phase() != "unreachable")
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=20) == 0


@pytest.mark.requirement("4.1")
def test_an_altered_model_ends_the_service_with_both_digests(
    launcher: Launcher, tmp_path: Path, model_section: ModelSection
) -> None:
    data = bytearray(model_section.path.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "altered.gguf"
    path.write_bytes(data)
    daemon = launcher.start(model=model_section.model_copy(update={"path": path}))
    assert daemon.process.wait(timeout=30) == 4
    log = daemon.log.read_text()
    assert "model refused" in log
    assert model_section.sha256 in log
    assert log.count("Booting worker") == 1
    assert "backend library" not in log  # libllama was not even started


@pytest.mark.requirement("5.1")
def test_a_model_of_another_prompt_format_is_refused_before_it_is_loaded(
    launcher: Launcher, model_section: ModelSection
) -> None:
    daemon = launcher.start(model=model_section.model_copy(update={"format": "v7-tekken"}))
    assert daemon.process.wait(timeout=30) == 4
    log = daemon.log.read_text()
    assert "model refused" in log
    assert "<|im_start|>user" in log  # what the file makes
    assert "[INST]uuu[/INST]" in log  # what was expected
    assert "backend library" not in log
    own = launcher.start(model=model_section.model_copy(update={"format": "chatml"}))
    launcher.ready(own)


def test_a_killed_worker_ends_the_service(launcher: Launcher) -> None:
    daemon = launcher.ready(launcher.start())
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGKILL)
    assert daemon.process.wait(timeout=20) == 3
    assert daemon.log.read_text().count("Booting worker") == 1


def test_an_invalid_configuration_exits_2(tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[model]\n")
    result = cli("serve", "--config", config)
    assert result.returncode == 2
    assert "model.path" in result.stderr
