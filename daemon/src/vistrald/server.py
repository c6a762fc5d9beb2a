"""gunicorn glue: one worker process, threads for requests, the model loaded after the fork."""

import logging
import os
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.workers.gthread import ThreadWorker

from vistrald.notify import Notifier
from vistrald.settings import Settings

if TYPE_CHECKING:
    from flask import Flask

    from vistrald.service import Service

# Exit codes of a worker that make gunicorn end as a whole instead of starting another worker.
ENGINE_DIED: int = Arbiter.WORKER_BOOT_ERROR  # 3: a restart may help
MODEL_REFUSED: int = Arbiter.APP_LOAD_ERROR  # 4: a restart will not help

WORKER_SILENCE_SECONDS = 120  # the worker's main thread only polls; a load runs beside it
CANCEL_SECONDS = 5  # for cancelled streams to say so and close


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is untyped
    """gunicorn's threaded worker, with streams that are brought to an end at shutdown."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.alive:
            threading.Thread(target=self.app.service.drain, name="drain", daemon=True).start()
        super().handle_exit(sig, frame)


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn is untyped
    """`vistrald serve`; listens on systemd's sockets if there are any, else on server.listen."""

    service: "Service"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # gunicorn would announce READY as soon as it listens; the engine does when it has answered.
        self._notify_socket = os.environ.pop("NOTIFY_SOCKET", None)
        super().__init__()

    def load_config(self) -> None:
        server = self.settings.server
        options: dict[str, Any] = {
            "bind": server.listen,
            "worker_class": Worker,
            "workers": 1,
            "threads": server.request_threads,
            "timeout": WORKER_SILENCE_SECONDS,
            "graceful_timeout": server.grace_seconds + CANCEL_SECONDS,
            "keepalive": 75,  # longer than a reverse proxy keeps its idle connections (60 s)
            "control_socket_disable": True,
            "proc_name": "vistrald",
            "pre_fork": _only_once,
            "worker_exit": lambda _server, worker: worker.app.service.stop(),
        }
        for key, value in options.items():
            self.cfg.set(key, value)

    def load(self) -> "Flask":
        """Runs in the worker: libllama's threads would not survive the fork.

        Imported here, so that the arbiter stays at a third of the memory.
        """
        from vistrald.api import create_app  # noqa: PLC0415
        from vistrald.service import Service  # noqa: PLC0415

        self.service = Service(
            self.settings, notifier=Notifier(self._notify_socket), on_failure=_exit_worker
        )
        app = create_app(self.service)
        self.service.start()
        return app


def _only_once(_arbiter: Any, worker: Any) -> None:
    """A worker that died takes the service with it: systemd restarts it, and counts."""
    if worker.age > 1:
        raise HaltServer("the worker died", ENGINE_DIED)


def _exit_worker(refused: bool) -> None:
    logging.shutdown()
    os._exit(MODEL_REFUSED if refused else ENGINE_DIED)
