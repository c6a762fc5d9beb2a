"""The OpenAPI document, made from the operations and their pydantic models."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vistrald import __version__
from vistrald.api.operation import Operation
from vistrald.api.schemas import ErrorResponse

REF = "#/components/schemas/{model}"
DESCRIPTIONS = {200: "OK", 503: "Not ready"}


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    operations = list(operations)
    bodies = {operation.body for operation in operations if operation.body}
    answers = {
        model
        for operation in operations
        for model in operation.responses.values()
        if not isinstance(model, str)
    }
    answers.add(ErrorResponse)
    _, schemas = models_json_schema(
        [
            *((model, "validation") for model in sorted(bodies, key=_name)),
            *((model, "serialization") for model in sorted(answers, key=_name)),
        ],
        ref_template=REF,
    )
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vistrald",
            "version": __version__,
            "description": "One language model for a legal assistant: RAG-compatible and "
            "OpenAI-compatible interfaces. Every error has the form ErrorResponse.",
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, model in operation.responses.items():
        media = {model: {}} if isinstance(model, str) else _json(model)
        if status == 200 and operation.also:
            media[operation.also] = {}
        responses[str(status)] = {"description": DESCRIPTIONS[status], "content": media}
    responses["default"] = {"description": "An error", "content": _json(ErrorResponse)}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.method.lower() + operation.path.replace("/", "_"),
        "responses": responses,
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    return described


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(model=_name(model))}}}


def _name(model: type[BaseModel]) -> str:
    return model.__name__
