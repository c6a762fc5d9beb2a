"""The OpenAI-compatible interface."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flask import g, request
from flask.typing import ResponseReturnValue

from vistrald.api import schemas
from vistrald.api.errors import ApiError, as_api_error
from vistrald.api.operation import Operation, as_json, event, read_body
from vistrald.api.streaming import collect, ended, peer, respond
from vistrald.engine.sequence import StreamError
from vistrald.service import Service


def operations(service: Service) -> list[Operation]:
    name = service.settings.model.name
    created = int(time.time())

    def list_models() -> ResponseReturnValue:
        card = schemas.ModelCard(id=name, created=created, owned_by="vistrald")
        return as_json(schemas.ModelList(data=[card]))

    def complete() -> ResponseReturnValue:
        body = read_body(schemas.ChatRequest)
        if body.model != name:
            raise ApiError(
                404,
                "model_not_found",
                f"this service has one model, {name}",
                f'send "model": "{name}"; GET /v1/models lists it',
            )
        body.max_tokens = body.max_completion_tokens or body.max_tokens
        tokens = service.encoder.encode_messages([each.as_message() for each in body.messages])
        defaults = service.settings.generation
        answer = service.submit(tokens, body.sampling(defaults), body.deadline(defaults))
        completion_id, now = f"chatcmpl-{g.request_id}", int(time.time())
        if not body.stream:
            text, result = collect(answer, peer(request.environ), g.record)
            summary = schemas.summary(g.request_id, result)
            choice = schemas.Choice(
                message=schemas.AnswerMessage(content=text), finish_reason=summary["finish_reason"]
            )
            return as_json(
                schemas.ChatResponse(
                    id=completion_id,
                    created=now,
                    model=name,
                    choices=[choice],
                    ended_by=summary["ended_by"],
                    usage=summary["usage"],
                    timings=summary["timings"],
                )
            )

        request_id = g.request_id
        include_usage = body.stream_options is not None and body.stream_options.include_usage

        def chunk(choices: list[dict[str, Any]], **more: Any) -> str:
            return event(
                {
                    "id": completion_id,
                    "object": "chat.completion.chunk",
                    "created": now,
                    "model": name,
                    "choices": choices,
                    **more,
                }
            )

        def events(pieces: Iterable[str]) -> Iterator[str]:
            yield chunk([_delta({"role": "assistant", "content": ""})])
            try:
                for piece in pieces:
                    yield chunk([_delta({"content": piece})]) if piece else ": ping\n\n"
                result = ended(answer)
            except (ApiError, StreamError) as error:
                yield event(as_api_error(error, service).as_dict(request_id))
                return
            timings = schemas.TimingsModel.of(result).model_dump()
            yield chunk(
                [_delta({}, result.finish_reason)],
                ended_by=result.ended_by,
                complete_chars=result.complete_chars,
                timings=timings,
            )
            if include_usage:
                yield chunk([], usage=schemas.Usage.of(result).model_dump())
            yield event("[DONE]")

        return respond(answer, peer(request.environ), g.record, events)

    return [
        Operation(
            "GET",
            "/v1/models",
            "The one model that is served",
            list_models,
            responses={200: schemas.ModelList},
        ),
        Operation(
            "POST",
            "/v1/chat/completions",
            "OpenAI's chat completion, whole or as server-sent events",
            complete,
            body=schemas.ChatRequest,
            responses={200: schemas.ChatResponse},
            also="text/event-stream",
        ),
    ]


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}
