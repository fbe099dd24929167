"""The access log: what a line tells, what it never tells, and that nobody waits for it."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from running_server import RunningServer, running_server

from penstock.proxy.observe.access_log import json_line, text_line
from penstock.proxy.observe.line_writer import MAX_WAITING_BYTES, LineWriter
from penstock.proxy.observe.record import KEPT_CHARACTERS, RequestRecord

CHAT = "/v1/chat/completions"
SECRET = "the-question-nobody-may-read"
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": SECRET}],
    "max_tokens": 4,
    "ignore_eos": True,
}


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


async def post(
    session: aiohttp.ClientSession, server: RunningServer, body: dict[str, Any], **headers: str
) -> tuple[int, bytes]:
    async with session.post(server.url + CHAT, json=body, headers=headers) as reply:
        return reply.status, await reply.read()


async def test_a_line_tells_what_became_of_a_request(
    engine_address: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key, kept = "sk-a-key-that-no-log-may-have", {**ASK, "temperature": 0, "stop": ["e"], "max_tokens": 90}
    settings = {"access_log": "json", "cache_path": tmp_path / "cache", "model_aliases": {"gpt": "tiny"}}
    async with running_server(engine_address, model, api_keys=(key,), **settings) as server:
        kept["logit_bias"] = server.spelling("e")
        del kept["ignore_eos"]
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            await post(session, server, {**ASK, "model": "gpt", "stream": True}, **{"x-request-id": "mine-1"})
            await post(session, server, kept)
            await post(session, server, kept)
            await post(session, server, {**ASK, "max_tokens": -1})
            await post(session, server, ASK, Authorization="Bearer wrong")
            await session.get(server.url + "/no/such/path")
            await session.post(server.url + "/v1/embeddings", json={"model": "none", "input": SECRET})
    text = capfd.readouterr().out
    stream, miss, hit, refused, unknown, nowhere, embedding = lines_of(text)
    assert SECRET not in text and key not in text and "wrong" not in text

    assert stream["request_id"] == "mine-1" and stream["time"].endswith("Z")
    assert (stream["method"], stream["route"], stream["status"]) == ("POST", CHAT, 200)
    assert (stream["model_asked"], stream["model"], stream["stream"]) == ("gpt", "tiny", True)
    assert stream["completion_tokens"] == 4 and stream["prompt_tokens"] > 4
    assert stream["finish_reasons"] == ["length"] and stream["cache"] == "bypass"
    assert (
        0 < stream["ttft_ms"] <= stream["duration_ms"] and 0 < stream["overhead_ms"] < stream["duration_ms"]
    )
    assert stream["bytes_out"] > 500 and stream["response_id"].startswith("chatcmpl-")
    assert (stream["error"], stream["aborted"], stream["cost"]) == (None, False, 0)
    assert "prompt" not in stream and "answer" not in stream

    assert (miss["cache"], hit["cache"]) == ("miss", "hit")
    assert hit["saved_ms"] > 0 and hit["completion_tokens"] == miss["completion_tokens"]
    assert hit["overhead_ms"] == pytest.approx(hit["duration_ms"], rel=0.2)
    assert (refused["status"], refused["error"]) == (400, "invalid_request_error")
    assert refused["prompt_tokens"] is refused["completion_tokens"] is refused["ttft_ms"] is None
    assert (unknown["status"], unknown["error"], unknown["tenant"]) == (401, "invalid_api_key", None)
    assert (nowhere["status"], nowhere["route"], nowhere["error"]) == (404, "unknown", "not_found")
    assert (embedding["status"], embedding["error"]) == (404, "model_not_found")
    assert len({line["tenant"] for line in (stream, miss, hit, refused)}) == 1


@pytest.mark.parametrize("cache", [False, True])  # with one, others may join the answer
async def test_a_client_that_leaves_is_told_of(
    engine_address: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], cache: bool
) -> None:
    settings = {"cache_path": tmp_path} if cache else {}
    async with running_server(
        engine_address, model, access_log="json", local_hour_price=3600.0, **settings
    ) as server:
        body = {**ASK, "max_tokens": 400, "stream": True, "temperature": 0}
        async with aiohttp.ClientSession() as session:
            async with session.post(server.url + CHAT, json=body) as reply:
                await reply.content.readany()
            await session.close()
        await server.idle()
    (line,) = lines_of(capfd.readouterr().out)
    assert (line["status"], line["aborted"], line["error"]) == (499, True, None)
    assert 1 <= line["completion_tokens"] < 400
    assert 0 < line["cost"] < line["duration_ms"] / 1000, "what it has cost until then"
    assert line["finish_reasons"] == []


async def test_what_is_no_http_is_on_record_too(
    engine_address: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running_server(engine_address, model, access_log="json") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        writer.close()
    (line,) = lines_of(capfd.readouterr().out)
    assert (line["status"], line["route"], line["error"]) == (400, "broken", "bad_request")
    assert f"x-request-id: {line['request_id']}\r\n" in head


async def test_prompts_and_answers_only_where_asked_for_and_cut(
    engine_address: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = {**ASK, "messages": [{"role": "user", "content": "x" * 450 + SECRET}]}
    async with running_server(engine_address, model, access_log="json", log_prompts=True) as server:
        body["logit_bias"] = server.spelling("a")
        async with aiohttp.ClientSession() as session:
            assert (await post(session, server, body))[0] == 200
    (line,) = lines_of(capfd.readouterr().out)
    assert line["answer"] == "aaaa"
    assert len(line["prompt"]) == KEPT_CHARACTERS and SECRET in line["prompt"]


def record(**fields: Any) -> RequestRecord:
    made = RequestRecord(request_id="r", method="POST", route=CHAT, started=time.perf_counter(), time=0.0)
    for name, value in fields.items():
        setattr(made, name, value)
    made.ended = made.started + 0.25
    return made


HOSTILE = 'a"b\\\n{"status":200}\r\n\u2028\x00\x1b[31m\ud800é'


def test_no_value_writes_a_line_of_its_own() -> None:
    for write in (json_line, text_line):
        line = write(record(model_asked=HOSTILE, upstream=HOSTILE, finish_reasons=["stop", "length"]))
        assert line.endswith(b"\n") and len(line.decode().splitlines()) == 1
        assert b"\x1b" not in line and b"\x00" not in line
    asked = json.loads(json_line(record(model_asked=HOSTILE)))["model_asked"]
    assert asked == HOSTILE.replace("\ud800", "?")
    assert len(json.loads(json_line(record(model_asked="m" * 9999)))["model_asked"]) == 256


def test_a_line_of_text_tells_what_is_known() -> None:
    line = text_line(record(status=200, model="tiny model", finish_reasons=["stop", "stop"])).decode()
    assert line == (
        "time=1970-01-01T00:00:00.000Z request_id=r method=POST route=/v1/chat/completions status=200 "
        'model="tiny model" targets=0 finish_reasons="stop,stop" duration_ms=250.0 overhead_ms=250.0 bytes_out=0\n'
    )


async def test_a_reader_that_stops_reading_holds_nobody_up() -> None:
    """What waits for it is bounded; what was written is whole lines."""
    reading, writing = os.pipe()
    writer = LineWriter(writing)
    line = b"x" * 4000 + b"\n"
    slowest = 0.0
    for _ in range(2 * MAX_WAITING_BYTES // len(line)):
        begun = time.perf_counter()
        writer.write(line)
        slowest = max(slowest, time.perf_counter() - begun)
    await asyncio.sleep(0.3)  # its thread is stuck in the full pipe
    assert slowest < 0.1
    assert len(b"".join(writer._lines)) < MAX_WAITING_BYTES
    begun = time.perf_counter()
    await writer.close()
    assert time.perf_counter() - begun < 2
    os.set_blocking(reading, False)
    got = os.read(reading, 1 << 20)
    assert got and set(got.split(b"\n")) <= {line[:-1], b""}
    os.close(reading)


async def test_lines_of_two_writers_do_not_mix() -> None:
    reading, writing = os.pipe()
    writers = {letter: LineWriter(writing) for letter in (b"a", b"b")}
    for length in range(200):
        for letter, writer in writers.items():
            writer.write(letter * (length + 1) + b"\n")
    collected = asyncio.create_task(asyncio.to_thread(_read_all, reading))
    for writer in writers.values():
        await writer.close()
    os.close(writing)
    lines = (await collected).splitlines()
    assert len(lines) == 400
    assert all(len(set(line)) == 1 for line in lines)
    for letter in writers:
        assert [len(line) for line in lines if line.startswith(letter)] == list(range(1, 201)), (
            "in their order"
        )


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()
