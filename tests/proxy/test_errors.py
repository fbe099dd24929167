"""Every refusal has OpenAI's error shape, its status, and words that say what to do."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from running_server import RunningServer, running_server

from penstock.proxy import request_body

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]


async def answer(
    server: RunningServer, method: str, path: str, body: bytes | dict[str, Any] = b"", **headers: str
) -> tuple[int, dict[str, Any], Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path, data=data, headers=headers) as reply,
    ):
        return reply.status, await reply.json(), reply.headers


def assert_error_shape(content: dict[str, Any]) -> dict[str, Any]:
    assert content.keys() == {"error"}
    error: dict[str, Any] = content["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"][-1] in ".?"
    return error


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "says"),
    [
        ("GET", "/nowhere", b"", 404, "not_found", "GET /nowhere"),
        ("GET", CHAT, b"", 405, "method_not_allowed", "takes POST"),
        ("GET", "/v1/models/other", b"", 404, "model_not_found", "'other'"),
        ("POST", CHAT, b"{", 400, None, "not valid JSON"),
        ("POST", CHAT, b"[1]", 400, None, "list"),
        ("POST", CHAT, b'"\xff"', 400, None, "not valid JSON"),
        ("POST", CHAT, {"messages": HELLO}, 400, None, "`model`"),
        ("POST", CHAT, {"model": "tiny"}, 400, None, "`messages`"),
        ("POST", "/v1/completions", {"model": "tiny"}, 400, None, "`prompt`"),
        ("POST", "/tokenize", {"model": "tiny"}, 400, None, "either prompt or messages"),
        ("POST", "/detokenize", {"tokens": [9999]}, 400, None, "9999"),
    ],
)
async def test_refusals(
    server: RunningServer, method: str, path: str, body: Any, status: int, code: str | None, says: str
) -> None:
    got, content, headers = await answer(server, method, path, body)
    error = assert_error_shape(content)
    assert (got, error["code"]) == (status, code)
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"messages": []}, "messages", "empty"),
        ({"messages": "hi"}, "messages", "array"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "wizard"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "tools"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "None"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "text",
        ),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name", "template"),
        (
            {"messages": [{"role": "assistant", "tool_calls": "x", "content": "x"}]},
            "messages[0].tool_calls",
            "does not mention tools",
        ),
        ({"max_tokens": "many"}, "max_tokens", "int"),
        ({"max_tokens": -1}, "max_tokens", "-1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "one of them"),
        ({"temperature": "hot"}, "temperature", "float"),
        ({"top_p": 1.5}, "top_p", "1.5"),
        ({"n": 0}, "n", "0"),
        ({"n": 1000}, "n", "1000"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs", "21"),
        ({"stop": [""]}, "stop", "empty"),
        ({"logit_bias": {"foo": 1}}, "logit_bias.foo", "token id"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "101"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        (
            {"response_format": {"type": "json_object", "json_schema": 3}},
            "response_format.json_schema",
            "expected",
        ),
        ({"store": True}, "store", "not supported"),
        ({"audio": {"voice": "alloy"}}, "audio", "not supported"),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "not supported",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "must not hold"),
        ({"penstock": {"cash": {}}}, "penstock.cash", "cache"),
        ({"penstock": {"sparse_attention": {"mass": 1.5}}}, "sparse_attention", "mass is 1.5; it must be"),
        ({"penstock": {"sparse_attention": {"mas": 0.5}}}, "sparse_attention", "unknown field `mas`"),
        ({"penstock": {"sparse_attention": True}}, "sparse_attention", "give its mass"),
        ({"penstock": {"sparse_attention": {}}}, "sparse_attention", "start it with"),
        ({"penstock": {"cache": {"mode": "blind"}}}, "x-penstock-cache-control", "off, draft, trusted"),
    ],
)
async def test_bad_chat_parameters(
    server: RunningServer, change: dict[str, Any], param: str, says: str
) -> None:
    status, content, _ = await answer(server, "POST", CHAT, {"model": "tiny", "messages": HELLO, **change})
    error = assert_error_shape(content)
    assert (status, error["param"]) == (400, param)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("control", "says"),
    [
        ("no-cash", "did you mean 'no-cache'"),
        ("ttl=soon", "'soon'"),
        ("ttl=-1", "'-1'"),
        ("no-cache=1", "no value"),
    ],
)
async def test_bad_cache_directives(server: RunningServer, control: str, says: str) -> None:
    body = {"model": "tiny", "messages": HELLO}
    status, content, _ = await answer(server, "POST", CHAT, body, **{"x-penstock-cache-control": control})
    assert status == 400
    assert says in assert_error_shape(content)["message"]


async def test_a_sane_request_id_comes_back_and_another_does_not(server: RunningServer) -> None:
    _, _, headers = await answer(server, "GET", "/v1/models", **{"x-request-id": "trace-1.a:b_c"})
    assert headers["x-request-id"] == "trace-1.a:b_c"
    _, _, headers = await answer(server, "GET", "/v1/models", **{"x-request-id": "a b"})
    assert headers["x-request-id"] not in ("", "a b")


async def test_broken_http_is_answered_in_the_same_shape(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    cases = {
        b"this is not http\r\n\r\n": 400,
        b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000 + b"\r\n\r\n": 431,
    }
    for garbage, status in cases.items():
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        reply = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        head, _, body = reply.partition(b"\r\n\r\n")
        assert int(head.split()[1]) == status, head
        assert b"aiohttp" not in head, "versions are nobody's business"
        assert_error_shape(json.loads(body))


async def test_half_a_body_is_given_up(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_SECONDS", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 408"), head
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    assert assert_error_shape(json.loads(await reader.readexactly(length)))["code"] == "request_timeout"
    writer.close()


async def test_a_body_over_the_limit(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model, max_body_bytes=1000) as small:
        status, content, _ = await answer(small, "POST", CHAT, b"x" * 1001)
        error = assert_error_shape(content)
        assert (status, error["code"]) == (413, "body_too_large")
        assert "1000 bytes" in error["message"]


async def test_keys(engine_address: str, model: Path) -> None:
    async with running_server(engine_address, model, api_keys=("right", "other")) as locked:
        status, content, headers = await answer(locked, "GET", "/v1/models")
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "needs an API key" in assert_error_shape(content)["message"]
        status, content, _ = await answer(locked, "GET", "/v1/models", Authorization="Bearer wrong")
        assert status == 401
        assert assert_error_shape(content)["code"] == "invalid_api_key"
        for key in ("right", "other"):
            status, _, _ = await answer(locked, "GET", "/v1/models", Authorization=f"Bearer {key}")
            assert status == 200
        status, _, _ = await answer(locked, "GET", "/health/ready")
        assert status == 200, "probes have no key"


async def test_overload_says_when_to_come_back(server: RunningServer) -> None:
    """The engine takes 64 running and 32 waiting sequences."""
    client = server.client()
    long = {"model": "tiny", "prompt": "a", "max_tokens": 480, "extra_body": {"ignore_eos": True}}
    running = [asyncio.create_task(client.completions.create(**long, n=24)) for _ in range(6)]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        error = next(iter(done)).exception()
        assert error is not None
        reply = error.response  # type: ignore[attr-defined]  # openai.APIStatusError
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert assert_error_shape(reply.json())["code"] == "overloaded"
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    await server.idle()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"Authorization: Bearer \xff\xfe", {}, 200),
        (b"x-penstock-namespace: \xff", {}, 400),
        (b"Content-Encoding: gzip", {}, 400),
        (b"X: y", {"logit_bias": {"9" * 30: 1}}, 400),
        (b"X: y", {"logit_bias": {"9" * 5000: 1}}, 400),
        (b"X: y", {"repetition_penalty": 1e-40}, 400),
        (b"X: y", {"top_p": 1e-46}, 200),
        (b"X: y", {"temperature": 1e39, "min_tokens": 2}, 200),
    ],
)
async def test_odd_requests_are_no_fault_of_the_server(
    server: RunningServer, headers: bytes, body: dict[str, Any], status: int
) -> None:
    """Raw: clients refuse to send some of these."""
    data = json.dumps({"model": "tiny", "messages": HELLO, "max_tokens": 3, **body}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
    writer.write(head.encode() + headers + b"\r\n\r\n" + data)
    answered = await reader.read()
    writer.close()
    assert int(answered.split()[1]) == status, answered


async def test_a_prompt_beyond_the_context_is_refused_before_the_engine_sees_it(
    server: RunningServer,
) -> None:
    body = {"model": "tiny", "prompt": [5] * 100_000, "max_tokens": 1}
    status, content, _ = await answer(server, "POST", "/v1/completions", body)
    assert status == 400 and "is 100000 tokens long" in content["error"]["message"], (
        "the engine words it otherwise"
    )
    assert content["error"]["code"] == "context_length_exceeded"
