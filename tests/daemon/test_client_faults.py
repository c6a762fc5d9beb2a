"""The drop-in client where the daemon is down, loading, restarting, slow, or not the daemon."""

import asyncio
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.serving import make_server

from tests.daemon.helpers import wait_until
from tests.daemon.test_client import LONG, STORY, last_request
from tests.daemon.test_serve import Daemon, Launcher, free_port
from vistrald.api import create_app
from vistrald.client.vistral_service import (
    VistralError,
    VistralRequestError,
    VistralService,
    VistralTimeoutError,
    VistralUnavailableError,
)
from vistrald.notify import Notifier
from vistrald.service import Service
from vistrald.settings import ModelSection, Settings


@pytest.fixture
def launcher(tmp_path: Path, model_section: ModelSection) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path, model_section)
    yield launcher
    launcher.stop_all()


@contextmanager
def asking(url: str, timeout: float = 300, **more: Any) -> Iterator[VistralService]:
    named = {"VISTRAL_URL": url, "VISTRAL_INFERENCE_TIMEOUT": timeout, **more}
    service = VistralService(SimpleNamespace(**named))
    yield service
    service.close()


@contextmanager
def listening(server: Any) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def loading(settings: Settings) -> Iterator[tuple[str, Service]]:
    """The daemon's interface before its model is loaded, until `start()`."""
    service = Service(settings, notifier=Notifier(None), on_failure=lambda _: None)
    server = make_server("127.0.0.1", 0, create_app(service), threaded=True)
    with listening(server) as url:
        yield url, service
    if service.phase == "ready":
        service.stop()


# --- Down, loading, restarting ---------------------------------------------------------------


def test_a_daemon_that_is_down_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with asking(url, timeout=1, VISTRAL_LOAD_TIMEOUT=1) as service:
        calls = [
            lambda: service.generate_response("Hi"),
            lambda: service.create_legal_prompt("Hi"),
            service.ensure_model_loaded_sync,
            service.preload_model,
            lambda: asyncio.run(anext(service.stream_response("Hi"))),  # type: ignore[arg-type]
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match=f"no connection to {url}"):
                call()
        assert service.is_model_loaded() is False
        assert service.get_stats()["failed_requests"] == 2


def test_while_the_model_loads_a_short_request_is_refused_at_once(settings: Settings) -> None:
    with loading(settings) as (url, _), asking(url, 8, VISTRAL_LOAD_TIMEOUT=1) as service:
        with pytest.raises(VistralUnavailableError, match="not serving: starting") as error:
            service.generate_response("<user>Hi</user>")
        assert (error.value.code, error.value.retry_after) == ("not_ready", 5)
        assert service.is_model_loaded() is False
        with pytest.raises(RuntimeError, match="the model is not loaded: starting, 0%"):
            service.ensure_model_loaded_sync()


def test_while_the_model_loads_a_request_waits_as_the_daemon_says(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vistrald.client")
    with loading(settings) as (url, daemon), asking(url) as service:
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(service.generate_response("Hi")))
        thread.start()
        wait_until(lambda: "waiting 5 s" in caplog.text)
        assert not answers
        daemon.start()
        service.preload_model()
        thread.join(timeout=60)
        assert answers
        assert "Hi" not in caplog.text
        assert service.get_stats()["successful_requests"] == 1


def test_a_restart_is_waited_for(launcher: Launcher) -> None:
    daemon = launcher.ready(launcher.start())
    with asking(daemon.url) as service:
        prompt = service.create_legal_prompt("Что такое кража?")
        before = service.generate_response(prompt, 8, 0)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(timeout=20) == 0
        answers: list[str] = []
        thread = threading.Thread(
            target=lambda: answers.append(service.generate_response(prompt, 8, 0))
        )
        thread.start()
        time.sleep(1)  # refused meanwhile
        command = [sys.executable, "-m", "vistrald"]
        again = launcher.launch(command, daemon.config, int(daemon.url.rsplit(":", 1)[1]), {})
        thread.join(timeout=120)
        assert answers == [before]
        assert again.queue()["running"] == 0


def test_a_daemon_that_is_killed_in_the_middle_of_an_answer(launcher: Launcher) -> None:
    daemon = launcher.ready(launcher.start())
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text()

    async def read() -> None:
        pieces = 0
        async for _ in service.stream_response(STORY, **LONG):
            pieces += 1
            if pieces == 1:
                os.kill(int(children.split()[0]), signal.SIGKILL)

    with asking(daemon.url) as service:
        with pytest.raises(VistralUnavailableError, match="ended before the answer did"):
            asyncio.run(read())
        assert service.get_stats()["failed_requests"] == 1


# --- Time --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, model_section: ModelSection
) -> Iterator[Daemon]:
    launcher = Launcher(tmp_path_factory.mktemp("daemon"), model_section)
    yield launcher.ready(launcher.start())
    launcher.stop_all()


def test_the_daemon_ends_an_answer_at_the_applications_deadline(daemon: Daemon) -> None:
    with asking(daemon.url, timeout=1.5) as service:
        assert service.generate_response(STORY, **LONG)
        assert last_request(daemon)["ended_by"] == "deadline"
        assert daemon.queue()["running"] == 0


def test_a_prompt_that_cannot_be_computed_in_time(daemon: Daemon) -> None:
    prompt = "Статья о краже. " * 250
    with asking(daemon.url, timeout=1) as service:
        with pytest.raises(VistralTimeoutError, match=r"^Inference timeout: the prompt has"):
            service.generate_response(prompt)
        with pytest.raises(VistralTimeoutError, match=r"^Inference timeout"):
            asyncio.run(anext(service.stream_response(prompt)))  # type: ignore[arg-type]
    wait_until(lambda: daemon.queue()["running"] == 0, 5)


def test_a_daemon_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with asking(url, timeout=1) as service:
            for call in (
                lambda: service.generate_response("Hi"),
                lambda: asyncio.run(anext(service.stream_response("Hi"))),  # type: ignore[arg-type]
            ):
                with pytest.raises(RuntimeError, match=r"^Inference timeout: http.* says nothing"):
                    call()
            assert service.is_model_loaded() is False


def test_close_ends_what_waits_in_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                service.generate_response("Hi")
            except VistralError as error:
                errors.append(error)

        with asking(f"http://127.0.0.1:{silent.getsockname()[1]}") as service:
            thread = threading.Thread(target=ask)
            thread.start()
            silent.accept()
            service.close()
            thread.join(timeout=10)
        assert "closed" in str(errors[0])


# --- Something else than the daemon ------------------------------------------------------------


class Gateway(BaseHTTPRequestHandler):
    """Asks for a key; behind it the path's number is the answer's status."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Bearer key"
        self.send_response(int(self.path.split("/")[1]) if known else 401)
        page = b"<html>a page</html>"
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_POST = do_GET  # noqa: N815  # the base class's form

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "key", "kind", "words"),
    [
        (200, "", VistralRequestError, "check VISTRAL_API_KEY"),
        (200, "key", VistralError, "not the Vistral daemon; correct the address"),
        (404, "key", VistralRequestError, "status 404"),
        (502, "key", VistralUnavailableError, "status 502"),
        (500, "key", VistralError, "status 500"),
    ],
)
def test_a_gateway_that_answers_itself(
    status: int, key: str, kind: type[VistralError], words: str
) -> None:
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    with listening(server) as url, asking(f"{url}/{status}", VISTRAL_API_KEY=key) as service:
        for call in (service.generate_response, service.create_legal_prompt):
            with pytest.raises(kind, match=words) as error:
                call("Hi")
            assert type(error.value) is kind


def test_a_certificate_of_the_offices_own(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=gateway"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with listening(server) as plain:
        url = plain.replace("http://", "https://")
        for ca_file, kind, words in (
            ("", VistralUnavailableError, "CERTIFICATE_VERIFY_FAILED"),
            (str(certificate), VistralRequestError, "status 401"),
        ):
            with (
                asking(url, 1, VISTRAL_CA_FILE=ca_file) as service,
                pytest.raises(kind, match=words),
            ):
                service.generate_response("Hi")
