"""Request ids, and one log line per request: what, how it ended, how long. Never its text."""

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from flask import Flask, Response, g, request

from vistrald import log as logs
from vistrald.engine.sequence import Stream
from vistrald.service import Service

log = logging.getLogger("vistrald.request")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Asked every few seconds by probes: logged only when they fail.
QUIET = {"/health/live", "/health/ready", "/metrics", "/api/v1/status"}


@dataclass
class RequestRecord:
    """What a request's log line will say; the handlers fill in the stream."""

    request_id: str
    began: float = field(default_factory=time.monotonic)
    stream: Stream | None = None


def register(app: Flask, service: Service) -> None:
    @app.before_request
    def _begin() -> None:
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        g.record = RequestRecord(g.request_id)

    @app.after_request
    def _finish(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        record, status = g.record, response.status_code
        route = request.url_rule.rule if request.url_rule else "unknown"
        method, path = request.method, request.path
        service.metrics.responded(route, status)

        def write() -> None:
            if path in QUIET and status < 400:
                return
            log.info(_line(record, method, path, status))

        response.call_on_close(write)
        return response


def _line(record: RequestRecord, method: str, path: str, status: int) -> str:
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "method": method,
        "path": path,
        "status": status,
        "ms": (time.monotonic() - record.began) * 1000,
    }
    if record.stream and (result := record.stream.result):
        timings = result.timings
        fields |= {
            "finish_reason": result.finish_reason,
            "ended_by": result.ended_by or "-",
            "prompt_tokens": result.prompt_tokens,
            "cached_tokens": timings.cache_n,
            "completion_tokens": result.completion_tokens,
            "queue_ms": timings.queue_ms,
            "ttft_ms": timings.ttft_ms,
            "prompt_per_second": timings.prompt_per_second,
            "predicted_per_second": timings.predicted_per_second,
            "drafted": timings.draft_n,
            "accepted": timings.draft_n_accepted,
        }
    return logs.line("request", **fields)
