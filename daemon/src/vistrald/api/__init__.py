"""The HTTP interface: parses and validates, hands over to the engine, writes the answer out."""

from flask import Flask, jsonify

from vistrald.api import errors, openai, operations, prefixes, rag, request_log
from vistrald.api.openapi import document
from vistrald.service import Service


def create_app(service: Service) -> Flask:
    """The Flask application of one service, which may still be loading its model."""
    app = Flask("vistrald", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = service.settings.server.max_body_bytes
    request_log.register(app, service)
    errors.register(app, service)
    described = [
        *rag.operations(service),
        *openai.operations(service),
        *prefixes.operations(service),
        *operations.operations(service),
    ]
    for operation in described:
        app.add_url_rule(
            operation.path,
            endpoint=f"{operation.method} {operation.path}",
            view_func=operation.view,
            methods=[operation.method],
        )
    openapi = document(described)
    app.add_url_rule("/openapi.json", view_func=lambda: jsonify(openapi), endpoint="openapi")
    return app
