"""The OpenAPI document is valid, complete, and true of real responses."""

from typing import Any

import jsonschema
import pytest
from flask.testing import FlaskClient
from openapi_spec_validator import validate


@pytest.fixture
def document(client: FlaskClient) -> Any:
    return client.get("/openapi.json").json


def check(document: Any, path: str, response: Any) -> None:
    """The body fits the schema that the document gives for this path and status."""
    (operation,) = [
        operation
        for method, operation in document["paths"][path].items()
        if method.upper() == response.request.method
    ]
    responses = operation["responses"]
    described = responses.get(str(response.status_code), responses["default"])
    schema = described["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**document, **schema}).validate(response.json)


def test_it_is_valid(document: Any) -> None:
    validate(document)


def test_it_lists_every_route(client: FlaskClient, document: Any) -> None:
    routes = {rule.rule for rule in client.application.url_map.iter_rules()}
    assert routes - set(document["paths"]) == {"/openapi.json"}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/health/live", None),
        ("GET", "/health/ready", None),
        ("GET", "/api/v1/status", None),
        ("GET", "/v1/models", None),
        ("POST", "/api/v1/prompt", {"question": "Что?"}),
        ("POST", "/api/v1/generate", {"prompt": "Hi", "max_tokens": 2}),
        ("POST", "/api/v1/generate", {"prompt": ""}),
        (
            "POST",
            "/v1/chat/completions",
            {
                "model": "smollm2-135m",
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 2,
            },
        ),
    ],
)
def test_responses_are_as_described(
    client: FlaskClient, document: Any, method: str, path: str, body: Any
) -> None:
    check(document, path, client.open(path, method=method, json=body))


def test_requests_are_described_as_they_are_validated(document: Any) -> None:
    schema = document["paths"]["/api/v1/generate"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    validator = jsonschema.Draft202012Validator({**document, **schema})
    assert validator.is_valid({"prompt": "x", "stop": ["a"], "temperature": 0.1})
    for bad in ({}, {"prompt": 1}, {"prompt": "x", "temperature": 3}, {"prompt": "x", "nope": 1}):
        assert not validator.is_valid(bad)
