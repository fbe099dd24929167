"""The API's description in OpenAPI 3.1, made from the table of endpoints and the types that requests are read into.

Says the form of things; limits that depend on the model (its length, its ids) are told by the refusals.
"""

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from .edge import OPEN_ROUTES
from .errors import JSON

if TYPE_CHECKING:
    from .endpoints import Endpoint

# Of the API; of the server nobody needs to know it.
API_VERSION = "1"
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_NO_LETTERS = re.compile(r"\W+")
_REF = "#/components/schemas/{name}"
_HEADERS = {
    "x-request-id": "Names the request in the server's log: the one that was sent, where it is sane.",
}

Schema = dict[str, Any]


def document(endpoints: Iterable["Endpoint"]) -> Schema:
    endpoints = tuple(endpoints)
    types = {
        type_ for each in endpoints for type_ in (each.takes, each.gives, each.events, each.fails) if type_
    }
    names = {type_.__name__ for type_ in types}
    assert len(names) == len(types), "two types of one name would be one schema"
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    for each in endpoints:
        if each.takes is not None:
            _close(components[each.takes.__name__], each.neutral, each.own)
    paths: Schema = {}
    for each in endpoints:
        paths.setdefault(_PARAMETER.sub(r"{\1}", each.path), {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": API_VERSION,
            "description": "OpenAI's API. A field that cannot be honoured is refused by name, never ignored.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Where the server asks for keys.",
                }
            },
        },
    }


def encoded(description: Schema) -> bytes:
    return orjson.dumps(description)


def _close(schema: Schema, neutral: Collection[str], own: Collection[str]) -> None:
    """Nothing but its fields is taken, as `compat.FieldPolicy` has it."""
    schema["additionalProperties"] = False
    for name in own:
        schema["properties"].pop(name, None)
    for name in sorted(neutral):
        schema["properties"].setdefault(name, {"description": "Accepted where it asks for nothing."})


def _operation(each: "Endpoint") -> Schema:
    operation: Schema = {
        "operationId": _NO_LETTERS.sub("_", each.method.lower() + _PARAMETER.sub(r"\1", each.path)),
        "summary": each.about,
        "security": [] if each.path in OPEN_ROUTES else [{}, {"key": []}],
        "responses": {
            "200": {"description": _done(each), "headers": _headers(), "content": _content(each)},
            "4XX": {"description": "Refused: what is wrong, and the remedy.", **_json(each.fails)},
            "5XX": {"description": "Failed, or not now: what happened.", **_json(each.fails)},
        },
    }
    if each.not_ready and each.gives is not None:
        operation["responses"]["503"] = {"description": "Not now.", **_json(each.gives)}
    parameters = _PARAMETER.findall(each.path)
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in parameters
        ]
    if each.takes is not None:
        body = _json(each.takes)
        if each.example is not None:
            body["content"][JSON]["example"] = each.example
        operation["requestBody"] = {"required": True, **body}
    return operation


def _headers() -> Schema:
    return {
        name: {"description": about, "schema": {"type": "string"}, "required": True}
        for name, about in _HEADERS.items()
    }


def _content(each: "Endpoint") -> Schema:
    if each.path == "/metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    if each.gives is None:
        return {JSON: {"schema": {"type": "object"}}}
    content: Schema = dict(_json(each.gives)["content"])
    if each.events is not None:
        content["text/event-stream"] = {"x-event-data": {"$ref": _ref(each.events)}}
    return content


def _done(each: "Endpoint") -> str:
    """OpenAPI 3.1 has no other words for a stream's events."""
    if each.events is None:
        return "Done."
    return (
        f"Done; or, with `stream`, begun: events whose data is a {each.events.__name__} each. One that breaks off ends with "
        f"a {each.fails.__name__}. (OpenAI's streams, where they are whole, end with `[DONE]`.)"
    )


def _json(type_: type[msgspec.Struct]) -> Schema:
    return {"content": {JSON: {"schema": {"$ref": _ref(type_)}}}}


def _ref(type_: type[msgspec.Struct]) -> str:
    return _REF.format(name=type_.__name__)
