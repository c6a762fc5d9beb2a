"""The RAG-compatible interface: prompts as strings, generation whole and streamed."""

from collections.abc import Iterable, Iterator

from flask import g, request
from flask.typing import ResponseReturnValue

from vistrald.api import schemas
from vistrald.api.errors import ApiError, as_api_error
from vistrald.api.operation import Operation, as_json, event, read_body
from vistrald.api.streaming import collect, ended, peer, respond
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.sequence import Stream, StreamError
from vistrald.engine.template import Message
from vistrald.legal.prompts import legal_messages
from vistrald.legal.saiga import parse_saiga_prompt
from vistrald.service import Service


def operations(service: Service) -> list[Operation]:
    def create_prompt() -> ResponseReturnValue:
        body = read_body(schemas.PromptRequest)
        history = [
            Message("assistant" if message.role == "bot" else message.role, message.content)
            for message in body.chat_history or []
        ]
        messages = legal_messages(body.question, body.context, history)
        return as_json(schemas.PromptResponse(prompt=service.encoder.render(messages)))

    def submit() -> Stream:
        body = read_body(schemas.GenerateRequest)
        tokens = encode(service.encoder, body.prompt)
        defaults = service.settings.generation
        return service.submit(tokens, body.sampling(defaults), body.deadline(defaults))

    def generate() -> ResponseReturnValue:
        text, result = collect(submit(), peer(request.environ), g.record)
        return as_json(
            schemas.GenerateResponse(response=text, **schemas.summary(g.request_id, result))
        )

    def stream() -> ResponseReturnValue:
        answer, request_id = submit(), g.request_id

        def events(pieces: Iterable[str]) -> Iterator[str]:
            try:
                for piece in pieces:
                    yield event({"text": piece}) if piece else ": ping\n\n"
                result = ended(answer)
            except (ApiError, StreamError) as error:
                yield event(as_api_error(error, service).as_dict(request_id), "error")
                return
            summary = schemas.Summary(**schemas.summary(request_id, result))
            yield event(summary.model_dump_json(), "done")

        return respond(answer, peer(request.environ), g.record, events)

    return [
        Operation(
            "POST",
            "/api/v1/prompt",
            "A legal question, its documents and the history as one prompt string",
            create_prompt,
            body=schemas.PromptRequest,
            responses={200: schemas.PromptResponse},
        ),
        Operation(
            "POST",
            "/api/v1/generate",
            "The answer to a prompt string",
            generate,
            body=schemas.GenerateRequest,
            responses={200: schemas.GenerateResponse},
        ),
        Operation(
            "POST",
            "/api/v1/stream",
            "The same as server-sent events: data {text}, then event done or error",
            stream,
            body=schemas.GenerateRequest,
            responses={200: "text/event-stream"},
        ),
    ]


def encode(encoder: PromptEncoder, prompt: str) -> list[int]:
    """Token ids of a prompt string.

    In the model's own format its control tokens count; in Saiga's it is read and rendered anew;
    anything else is one user message, in which no control token counts.
    """
    if encoder.is_rendered(prompt):
        return encoder.encode_rendered(prompt)
    messages = parse_saiga_prompt(prompt) or [Message("user", prompt)]
    return encoder.encode_messages(messages)
