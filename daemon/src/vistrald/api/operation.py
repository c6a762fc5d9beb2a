"""An endpoint as data: the routes and the OpenAPI document are both made from these."""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ValidationError

from vistrald.api.errors import ApiError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Operation:
    method: Literal["GET", "POST"]
    path: str
    summary: str
    view: Callable[[], ResponseReturnValue]
    body: type[BaseModel] | None = None
    # status -> what it carries: a model for JSON, or a media type for anything else
    responses: dict[int, type[BaseModel] | str] = field(default_factory=dict)
    also: str | None = None  # a second media type of the 200 response


def read_body(model: type[Model]) -> Model:
    """The request's JSON as `model`. Raises ApiError naming the field, its value and the limit."""
    if not request.is_json:
        raise ApiError(
            415,
            "not_json",
            f"the content type is {request.mimetype or 'missing'}, expected application/json",
            "send JSON with Content-Type: application/json",
        )
    try:
        return model.model_validate_json(request.get_data())
    except ValidationError as error:
        raise _invalid(error, model) from None


def _invalid(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """Names each field and its limit; a value only if it is a number: texts are confidential."""
    problems = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "json_invalid":
            hint = "send one JSON object in UTF-8"
            return ApiError(400, "invalid_json", f"the body is not JSON: {detail['msg']}", hint)
        name = ".".join(str(part) for part in detail["loc"]) or "body"
        value = detail["input"]
        shown = f" = {value}" if isinstance(value, (int, float)) else ""
        problem = f"{name}{shown}: {detail['msg']}"
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(detail["loc"][-1]), model.model_fields, n=1)
            problem = f"{name}: unknown name" + (f", did you mean {near[0]}?" if near else "")
        problems.append(problem)
    return ApiError(
        400,
        "invalid_request",
        "; ".join(problems[:10]),
        "correct the named fields; GET /openapi.json has their types and limits",
    )


def as_json(model: BaseModel, status: int = 200, **headers: str) -> ResponseReturnValue:
    return model.model_dump_json(), status, {"Content-Type": "application/json", **headers}


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"
