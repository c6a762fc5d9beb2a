"""The servers: how each is started with the same model, threads, context, KV type and slots.

What else is set is what serves that server best here; docs/benchmarks.md names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import requests

from bench import memory, peers
from bench.load import MODEL
from tools.wheelhouse import LLAMA_VERSION

READY_SECONDS = 1200  # 13 GB from a cold disk, and repacked
POLL_SECONDS = 0.02
GGML_TYPES = {"f16": 1, "q8_0": 8}  # enum ggml_type, llama_cpp.server's way to name a KV type


class ServerError(Exception):
    """A server did not start, or did not live."""


@dataclass(frozen=True)
class Setup:
    """What all servers have in common."""

    model: Path
    threads: int
    context_tokens: int = 4096
    slots: int = 4
    kv_type: str = "f16"
    batch_tokens: int = 512

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "model": self.model.name, "model_bytes": self.model.stat().st_size}


@dataclass(frozen=True)
class Server:
    name: str
    version: str
    command: Callable[[Path, int], list[str]]  # home, port
    health: str  # answers 200 once questions are answered
    note: str = ""
    keeps: bool = False  # whether documents can be kept on disk for the next process
    environment: dict[str, str] = field(default_factory=dict)

    def shown(self) -> str:
        """Its command line, as a report has it."""
        return " ".join(Path(part).name for part in self.command(Path("HOME"), 0))


@dataclass
class Running:
    url: str
    process: subprocess.Popen[bytes]
    ready_seconds: float
    peak: int  # bytes, of the moments it was looked at

    def look(self) -> None:
        """Between measurements: reading a large process's memory map costs its own time."""
        self.peak = max(self.peak, memory.used(self.process.pid))


@contextmanager
def running(server: Server, home: Path) -> Iterator[Running]:
    """A started server that is ready; ended when the block is. Raises ServerError."""
    home.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    log = home / "log"
    command = server.command(home, port)  # which may have to be compiled first
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=home,
            env={**peers.environment(), **server.environment},
        )
    started = Running(f"http://127.0.0.1:{port}", process, 0.0, 0)
    try:
        while not _ready(started.url + server.health):
            if process.poll() is not None or time.monotonic() - began > READY_SECONDS:
                tail = log.read_text(errors="replace")[-1500:]
                raise ServerError(f"{server.name} did not become ready; its log ends:\n{tail}")
            started.look()
            time.sleep(POLL_SECONDS)
        started.ready_seconds = time.monotonic() - began
        started.look()
        yield started
        started.look()
    finally:
        _end(process)


def _ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def vistrald(setup: Setup, *, name: str = "vistrald", drafts: bool = True) -> Server:
    """The daemon of this tree; without drafts to measure what they gain."""
    sha256 = _sha256(setup.model)
    draft_tokens = "" if drafts else "draft_tokens = 0\n"

    def command(home: Path, port: int) -> list[str]:
        config = home / "vistrald.toml"
        if home.is_dir():
            config.write_text(
                f'[model]\npath = "{setup.model}"\nsha256 = "{sha256}"\n'
                f'size = {setup.model.stat().st_size}\nname = "{MODEL}"\n'
                f'[server]\nlisten = "127.0.0.1:{port}"\n'
                f"[engine]\ncontext_tokens = {setup.context_tokens}\n"
                f"parallel_sequences = {setup.slots}\nthreads = {setup.threads}\n"
                f'batch_tokens = {setup.batch_tokens}\nkv_type = "{setup.kv_type}"\n'
                f"disk_cache_bytes = {4 * 10**9}\n{draft_tokens}"
                f"[generation]\ndeadline_seconds = 600\n"
                f'[paths]\nstate_dir = "{home}/state"\n'
            )
        return [sys.executable, "-m", "vistrald", "serve", "--config", str(config)]

    note = "disk_cache_bytes = 4e9, deadline 600 s" + ("" if drafts else ", draft_tokens = 0")
    return Server(name, "this tree", command, "/health/ready", note, keeps=True)


def llama_server(setup: Setup, *, name: str = "llama-server", drafts: bool = False) -> Server:
    """llama.cpp's own server, newest packaged build, compiled for this processor."""

    def command(_home: Path, port: int) -> list[str]:
        options = {
            "--model": setup.model,
            "--alias": MODEL,
            "--port": port,
            "--threads": setup.threads,
            "--ctx-size": setup.context_tokens,
            "--parallel": setup.slots,
            "--batch-size": setup.batch_tokens,
            "--ubatch-size": setup.batch_tokens,
            "--cache-type-k": setup.kv_type,
            "--cache-type-v": setup.kv_type,
            "--load-mode": "none",
            "--flash-attn": "auto",
        }
        switches = ["--cont-batching", "--kv-unified", "--cache-prompt", "--no-ui"]
        if drafts:
            switches += DRAFT_OPTIONS
        pairs = [str(part) for pair in options.items() for part in pair]
        return [str(peers.llama_server()), *pairs, *switches]

    note = "prompt cache in RAM (default 8 GiB); nothing of it outlives the process by itself"
    return Server(name, peers.LLAMA_SERVER_VERSION, command, "/health", note)


DRAFT_OPTIONS = ["--spec-type", "ngram-simple"]


def llama_cpp_server(setup: Setup) -> Server:
    """`python -m llama_cpp.server` on the daemon's own build of llama.cpp."""

    def command(_home: Path, port: int) -> list[str]:
        options = {
            "--model": setup.model,
            "--model_alias": MODEL,
            "--host": "127.0.0.1",
            "--port": port,
            "--n_threads": setup.threads,
            "--n_threads_batch": setup.threads,
            "--n_ctx": setup.context_tokens,
            "--n_batch": setup.batch_tokens,
            "--n_ubatch": setup.batch_tokens,
            "--type_k": GGML_TYPES[setup.kv_type],
            "--type_v": GGML_TYPES[setup.kv_type],
            "--use_mmap": False,
            "--logits_all": False,
            "--flash_attn": True,
            # By default a new request cuts off the answer that is being streamed.
            "--interrupt_requests": False,
            "--verbose": False,
        }
        pairs = [str(part) for pair in options.items() for part in pair]
        launcher = Path(__file__).with_name("llama_cpp_server.py")
        return [str(peers.llama_cpp_server()), str(launcher), *pairs]

    note = "one sequence: requests wait for each other; keeps the last request's KV"
    return Server("llama_cpp.server", LLAMA_VERSION, command, "/v1/models", note)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
