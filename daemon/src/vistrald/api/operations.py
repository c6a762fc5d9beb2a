"""Health, metrics, status."""

import time
from importlib.resources import files

import psutil
from flask import Response
from flask.typing import ResponseReturnValue
from prometheus_client import CONTENT_TYPE_LATEST

from vistrald import __version__
from vistrald.api import schemas
from vistrald.api.operation import Operation, as_json
from vistrald.cgroup import memory_limit
from vistrald.service import Service


def operations(service: Service) -> list[Operation]:
    settings = service.settings
    process = psutil.Process()
    page = files("vistrald.web").joinpath("status.html").read_text(encoding="utf-8")

    def live() -> ResponseReturnValue:
        return as_json(schemas.Live())

    def ready() -> ResponseReturnValue:
        is_ready = service.phase == "ready"
        body = schemas.Readiness(
            status="ready" if is_ready else "not_ready",
            phase=service.phase,
            progress=round(service.progress, 3),
        )
        return as_json(body) if is_ready else as_json(body, 503, **{"Retry-After": "5"})

    def metrics() -> ResponseReturnValue:
        return Response(service.metrics.exposition(), content_type=CONTENT_TYPE_LATEST)

    def status() -> ResponseReturnValue:
        return as_json(
            schemas.Status(
                release=settings.release.id,
                version=__version__,
                phase=service.phase,
                progress=round(service.progress, 3),
                uptime_seconds=round(time.monotonic() - service.started, 1),
                load_seconds=round(service.load_seconds, 2),
                model=schemas.ModelStatus(
                    name=settings.model.name,
                    description=service.model_description,
                    sha256=settings.model.sha256,
                    size=settings.model.size,
                    context_tokens=settings.engine.context_tokens,
                ),
                memory=schemas.MemoryStatus(
                    rss_bytes=process.memory_info().rss, limit_bytes=memory_limit()
                ),
                queue=schemas.QueueStatus(
                    running=service.running,
                    waiting=service.waiting,
                    parallel_sequences=settings.engine.parallel_sequences,
                    queue_length=settings.engine.queue_length,
                ),
                cpu=schemas.CpuStatus(backend=service.backend, threads=service.threads),
                totals=schemas.TotalsStatus.model_validate(service.totals.as_dict()),
            )
        )

    def status_page() -> ResponseReturnValue:
        return Response(page, mimetype="text/html")

    return [
        Operation(
            "GET", "/health/live", "The process answers", live, responses={200: schemas.Live}
        ),
        Operation(
            "GET",
            "/health/ready",
            "Requests are taken: the model is loaded and has generated",
            ready,
            responses={200: schemas.Readiness, 503: schemas.Readiness},
        ),
        Operation("GET", "/metrics", "For Prometheus", metrics, responses={200: "text/plain"}),
        Operation(
            "GET",
            "/api/v1/status",
            "Everything at a glance",
            status,
            responses={200: schemas.Status},
        ),
        Operation("GET", "/", "The same for people", status_page, responses={200: "text/html"}),
    ]
