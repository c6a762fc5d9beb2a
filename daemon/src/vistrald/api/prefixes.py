"""What prompts will begin with, computed before anybody asks and kept on disk."""

from collections.abc import Callable, Sequence

from flask import g, request
from flask.typing import ResponseReturnValue

from vistrald.api import schemas
from vistrald.api.errors import ApiError
from vistrald.api.operation import Operation, as_json, read_body
from vistrald.api.streaming import collect, peer
from vistrald.engine.disk_cache import DiskCache
from vistrald.engine.engine import SMALLEST_SAVED
from vistrald.engine.prefix_cache import common_prefix
from vistrald.engine.template import Message
from vistrald.legal.prompts import legal_messages
from vistrald.service import Service

# What may follow a prefix begins in these ways at least. Tokens reach over the border, so that only
# those are the prefix's own that are the same whatever follows.
CONTINUATIONS = ("А", "в", "1", " ", "\n", "«", "A")


def operations(service: Service) -> list[Operation]:
    def create() -> ResponseReturnValue:
        body = read_body(schemas.PrefixRequest)
        disk = _disk(service)
        tokens = beginning(service.encoder.encode_messages, body)
        known = disk.covers(tokens) == len(tokens)
        if not known and not body.dry_run:
            _check_size(service, disk, tokens)
            with service.keeping():
                collect(service.engine.keep(tokens), peer(request.environ), g.record)
                disk.wait()
            if disk.covers(tokens) < len(tokens):
                raise ApiError(
                    507,
                    "prefix_not_saved",
                    f"the prefix of {len(tokens)} tokens was computed and not saved: "
                    f"{disk.failure or 'others took its place'}",
                    "free space in paths.state_dir, or raise engine.disk_cache_bytes",
                )
        rate = service.engine.rates.prefill
        missing = 0 if known else len(tokens) - disk.covers(tokens[:-1])
        return as_json(
            schemas.PrefixResponse(
                status="known" if known else "absent" if body.dry_run else "saved",
                tokens=len(tokens),
                bytes=service.engine.token_bytes * len(tokens),
                seconds=round(missing / rate, 3) if rate else None,
                disk_bytes=disk.bytes,
                disk_cache_bytes=disk.max_bytes,
            )
        )

    return [
        Operation(
            "POST",
            "/api/v1/prefixes",
            "Computes what prompts will begin with and keeps it on disk",
            create,
            body=schemas.PrefixRequest,
            responses={200: schemas.PrefixResponse},
        )
    ]


def beginning(
    encode: Callable[[Sequence[Message]], list[int]], body: schemas.PrefixRequest
) -> list[int]:
    """The token ids that prompts about the same documents, or after the same messages, begin with.

    With neither, those that all prompts with documents begin with. Raises ApiError if they are too
    few to keep, TemplateError.
    """
    prompts = [encode(messages) for messages in _conversations(body)]
    tokens = prompts[0]
    for other in prompts[1:]:
        tokens = tokens[: common_prefix(tokens, other)]
    if len(tokens) < SMALLEST_SAVED:
        raise ApiError(
            400,
            "prefix_too_short",
            f"the prefix has {len(tokens)} tokens, at least {SMALLEST_SAVED} are worth a file",
            "leave it out: so few are computed in no time",
        )
    return tokens


def _conversations(body: schemas.PrefixRequest) -> list[list[Message]]:
    if body.messages:
        *before, last = [message.as_message() for message in body.messages]
        if last.role != "user":
            before, last = [*before, last], Message("user", "")
        return [[*before, Message("user", last.content + more)] for more in CONTINUATIONS]
    if body.context:
        return [legal_messages(question, body.context) for question in CONTINUATIONS]
    return [legal_messages("?", documents) for documents in CONTINUATIONS if documents.strip()]


def _disk(service: Service) -> DiskCache:
    if service.engine.disk is None:
        raise ApiError(
            409,
            "disk_cache_off",
            "prefixes are not kept on disk here: engine.disk_cache_bytes = 0, prefix_cache = false "
            "or the folder could not be made",
            "set engine.disk_cache_bytes (1000 tokens of a 24B model are 160 MB in f16); the log "
            "says if it was the folder",
        )
    return service.engine.disk


def _check_size(service: Service, disk: DiskCache, tokens: list[int]) -> None:
    """Before a minute is spent on it."""
    size = service.engine.token_bytes * len(tokens)
    if size > disk.max_bytes:
        raise ApiError(
            507,
            "prefix_too_large",
            f"the prefix has {len(tokens)} tokens, {size} bytes; the cap of all files is "
            f"{disk.max_bytes}",
            "raise engine.disk_cache_bytes, or shorten the documents",
        )
