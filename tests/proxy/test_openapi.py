"""/openapi.json says what the server does: every route, what it takes, and what it gives."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import msgspec
import pytest
from running_server import RunningServer, running_server

from penstock.proxy import replies
from penstock.proxy.endpoints import ENDPOINTS
from penstock.proxy.openapi import document

DOCUMENT = document(ENDPOINTS)
SCHEMAS = DOCUMENT["components"]["schemas"]
HELLO = [{"role": "user", "content": "hi"}]


async def call(server: RunningServer, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path, json=body) as reply,
    ):
        return reply.status, await reply.read()


def check(value: object, schema: str) -> None:
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **DOCUMENT}).validate(value)


async def test_it_is_served_without_a_key_and_names_nothing_of_this_server(
    engine_address: str, model: Path
) -> None:
    async with running_server(engine_address, model, api_keys=("right",), served_model_name="ours") as server:
        status, body = await call(server, "GET", "/openapi.json")
        assert status == 200 and json.loads(body) == json.loads(msgspec.json.encode(DOCUMENT))
        assert b"ours" not in body and b"right" not in body


def test_every_reference_leads_somewhere() -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                target: Any = DOCUMENT
                for step in value["$ref"].removeprefix("#/").split("/"):
                    target = target[step]
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(DOCUMENT)


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names)) == len(ENDPOINTS)


# (No embedding model runs here.)
@pytest.mark.parametrize(
    "each",
    [each for each in ENDPOINTS if each.example and each.path != "/v1/embeddings"],
    ids=lambda each: each.path,
)
async def test_examples_are_answered_as_said(engine_address: str, model: Path, each: Any) -> None:
    check(each.example, each.takes.__name__)
    async with running_server(engine_address, model, model_aliases={"*": "tiny"}) as server:
        status, body = await call(server, each.method, each.path, each.example)
        assert status == 200, body
        msgspec.json.decode(body, type=each.gives)  # knows every field
        check(json.loads(body), each.gives.__name__)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/tiny", "/health", "/health/ready", "/health/live"]
)
async def test_what_needs_no_body(server: RunningServer, path: str) -> None:
    each = next(each for each in ENDPOINTS if each.path == path.replace("/tiny", "/{id:.+}"))
    assert each.gives is not None
    status, body = await call(server, "GET", path)
    assert status == 200
    msgspec.json.decode(body, type=each.gives)


@pytest.mark.parametrize(
    ("path", "body", "type_"),
    [
        (
            "/v1/chat/completions",
            {"messages": HELLO, "logprobs": True, "top_logprobs": 2},
            replies.ChatCompletion,
        ),
        ("/v1/chat/completions", {"messages": HELLO, "n": 2}, replies.ChatCompletion),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "prediction": {"type": "content", "content": "x"}},
            replies.ChatCompletion,
        ),
        ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 2}, replies.TextCompletion),
        ("/v1/completions", {}, replies.Error),
    ],
)
async def test_other_replies_too(server: RunningServer, path: str, body: dict[str, Any], type_: type) -> None:
    _, reply = await call(server, "POST", path, {"model": "tiny", "max_tokens": 3, **body})
    msgspec.json.decode(reply, type=type_)


@pytest.mark.parametrize(
    ("path", "body", "type_"),
    [
        (
            "/v1/chat/completions",
            {"messages": HELLO, "logprobs": True, "stream_options": {"include_usage": True}},
            replies.ChatCompletionChunk,
        ),
        ("/v1/completions", {"prompt": "a", "n": 2}, replies.TextCompletion),
    ],
)
async def test_events(server: RunningServer, path: str, body: dict[str, Any], type_: type) -> None:
    _, reply = await call(server, "POST", path, {"model": "tiny", "max_tokens": 3, "stream": True, **body})
    *events, done = [event.removeprefix(b"data: ") for event in reply.split(b"\n\n") if event]
    assert done == b"[DONE]" and len(events) >= 2
    for event in events:
        msgspec.json.decode(event, type=type_)


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        ({"model": "tiny", "messages": HELLO}, True),
        ({"model": "tiny", "messages": HELLO, "store": False}, True),
        ({"model": "tiny", "messages": HELLO, "temprature": 1}, False),
        ({"model": "tiny", "messages": "hi"}, False),
        ({"messages": HELLO}, False),
        ({"model": "tiny", "messages": HELLO, "max_tokens": "3"}, False),
    ],
)
async def test_the_schema_and_the_server_agree(
    server: RunningServer, body: dict[str, Any], taken: bool
) -> None:
    validator = jsonschema.Draft202012Validator({"$ref": "#/components/schemas/ChatRequest", **DOCUMENT})
    assert validator.is_valid(body) == taken
    status, _ = await call(server, "POST", "/v1/chat/completions", {"max_tokens": 1, **body})
    assert (status == 200) == taken
