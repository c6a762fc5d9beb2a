"""One JSON form for every error: {"error": {"code", "message", "hint", "request_id"}}."""

import logging
import traceback
from typing import Any

from flask import Flask, Response, g, jsonify
from werkzeug.exceptions import HTTPException

from vistrald.engine.engine import (
    ContextOverflowError,
    QueueFullError,
    StoppedError,
    UnknownTokenError,
)
from vistrald.engine.sequence import DeadlineUnreachableError, EngineFailedError
from vistrald.engine.template import TemplateError
from vistrald.service import KeepingError, NotOfferedError, NotReadyError, Service

log = logging.getLogger(__name__)

HINTS = {
    404: "GET /openapi.json lists the endpoints",
    405: "see the Allow header and GET /openapi.json",
}


class ApiError(Exception):
    def __init__(
        self, status: int, code: str, message: str, hint: str, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.retry_after = retry_after

    def as_dict(self, request_id: str) -> dict[str, Any]:
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "hint": self.hint,
                "request_id": request_id,
            }
        }


def as_api_error(error: Exception, service: Service) -> ApiError:
    """The error as the API reports it; unknown ones become an internal error without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException) and error.code and error.code < 500:
        return _from_http(error, service)
    return _from_engine(error, service) or ApiError(
        500,
        "internal_error",
        "an error of the service, not of the request",
        "give the request_id to the administrator; the log has the details",
    )


def shutting_down() -> ApiError:
    return ApiError(
        503, "shutting_down", "the service is stopping", "retry in a minute", retry_after=30
    )


def _from_engine(error: Exception, service: Service) -> ApiError | None:
    api_error = None
    match error:
        case NotReadyError():
            api_error = ApiError(
                503,
                "not_ready",
                f"the model is not serving: {error.phase}",
                "retry when GET /health/ready answers 200",
                retry_after=5,
            )
        case StoppedError() | EngineFailedError():
            api_error = shutting_down()
        case QueueFullError():
            engine = service.settings.engine
            api_error = ApiError(
                503,
                "queue_full",
                f"{engine.parallel_sequences} requests run and {engine.queue_length} wait, "
                "which is the limit",
                "retry after the seconds in Retry-After, or raise engine.queue_length",
                retry_after=max(1, round(service.totals.average_response_time)),
            )
        case NotOfferedError():
            api_error = ApiError(
                400, "not_offered", str(error), f"leave it out, or set {error.key} = true"
            )
        case KeepingError():
            api_error = ApiError(
                503,
                "prefix_busy",
                "another prefix is being computed, one at a time",
                "retry after the seconds in Retry-After",
                retry_after=5,
            )
        case ContextOverflowError():
            api_error = ApiError(
                400,
                "context_overflow",
                f"the prompt has {error.tokens} tokens, the limit is {error.limit}",
                "shorten the context or the history, or raise engine.context_tokens",
            )
        case UnknownTokenError():
            api_error = ApiError(
                400, "unknown_token", str(error), "send token ids of the model's own vocabulary"
            )
        case TemplateError():
            api_error = ApiError(
                400, "messages_refused", str(error), "see the model's chat template in its card"
            )
        case DeadlineUnreachableError():
            api_error = _deadline_unreachable(error)
    return api_error


def _deadline_unreachable(error: DeadlineUnreachableError) -> ApiError:
    """422 where the prompt alone takes too long, 503 where the machine had other work.

    Clients repeat a request by themselves after any 5xx: in vain in the first case.
    """
    message = f"the prompt has {error.prompt_tokens} tokens, {error.cached_tokens} of them cached"
    if error.prefill_rate and error.seconds is not None:
        message += (
            f"; at the measured {error.prefill_rate:.1f} tokens/s the others take "
            f"{error.seconds:.0f} s"
        )
    message += f"; no answer can begin within the deadline of {error.deadline:g} s"
    if error.busy:
        return ApiError(
            503,
            "deadline_unreachable",
            message + " beside the other requests",
            "retry: what was computed of the prompt is kept; or send a larger deadline_seconds, or "
            "best_effort",
            retry_after=1,
        )
    fits = int((error.prefill_rate or 0) * error.deadline)
    return ApiError(
        422,
        "deadline_unreachable",
        message,
        f"about {fits} tokens that are not cached would fit: shorten the context, or let prompts "
        "begin alike (fixed instructions, documents in a stable order, the question last) so that "
        "their beginning is cached; or send a larger deadline_seconds, or best_effort",
    )


def _from_http(error: HTTPException, service: Service) -> ApiError:
    status = error.code or 500
    if status == 413:
        limit = service.settings.server.max_body_bytes
        return ApiError(
            413,
            "body_too_large",
            f"the request body exceeds {limit} bytes",
            "send a shorter context, or raise server.max_body_bytes",
        )
    code = error.name.lower().replace(" ", "_")
    hint = HINTS.get(status, "correct the request")
    return ApiError(status, code, error.description or error.name, hint)


def register(app: Flask, service: Service) -> None:
    def handle(error: Exception) -> Response:
        api_error = as_api_error(error, service)
        if api_error.status >= 500 and api_error.code == "internal_error":
            # The frames, not the exception's message, which may quote the request's text.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("request_id=%s %s\n%s", g.request_id, type(error).__name__, frames)
        response = jsonify(api_error.as_dict(g.request_id))
        response.status_code = api_error.status
        if api_error.retry_after:
            response.headers["Retry-After"] = str(api_error.retry_after)
        if isinstance(error, HTTPException):
            allow = dict(error.get_headers()).get("Allow")
            if allow:
                response.headers["Allow"] = allow
        return response

    app.register_error_handler(Exception, handle)
