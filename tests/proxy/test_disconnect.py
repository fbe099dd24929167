"""A client that leaves costs nothing more, at whichever moment: before the first token, mid-stream, waiting
for a body.
"""

import asyncio
import json
import socket
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from running_server import RunningServer, running_server

from penstock.proxy.service import Generation
from penstock.proxy.transcript import Transcript
from penstock.scheduler.outputs import Chunk

ENDLESS = {"model": "tiny", "temperature": 1, "max_tokens": 500, "ignore_eos": True}
CHAT = {**ENDLESS, "messages": [{"role": "user", "content": "go on"}]}


async def open_request(server: RunningServer, path: str, body: dict[str, object]) -> asyncio.StreamWriter:
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    writer.reader = reader  # type: ignore[attr-defined]  # kept with its writer for the tests below
    return writer


async def test_before_the_first_token(server: RunningServer) -> None:
    await server.idle()
    # So long a prompt that its prefill takes several steps.
    prompts = [[index % 200 + 1 for index in range(480)] for _ in range(8)]
    body = {**ENDLESS, "max_tokens": 20, "prompt": prompts, "stream": True}
    writer = await open_request(server, "/v1/completions", body)
    await server.busy()
    writer.transport.abort()
    await server.idle()


async def test_mid_stream(server: RunningServer) -> None:
    await server.idle()
    writer = await open_request(server, "/v1/chat/completions", {**CHAT, "stream": True, "n": 3})
    reader: asyncio.StreamReader = writer.reader  # type: ignore[attr-defined]
    for _ in range(5):
        await reader.readuntil(b"\n\n")
    assert server.engine.stats.num_running == 3
    writer.transport.abort()
    await server.idle()


async def test_waiting_for_a_body(server: RunningServer) -> None:
    await server.idle()
    writer = await open_request(server, "/v1/chat/completions", {**CHAT, "n": 2})
    await server.busy()
    writer.transport.abort()
    await server.idle()


async def test_a_polite_close_mid_stream(server: RunningServer) -> None:
    """FIN instead of RST, as most HTTP clients leave."""
    await server.idle()
    async with aiohttp.ClientSession() as session:
        reply = await session.post(server.url + "/v1/chat/completions", json={**CHAT, "stream": True})
        await reply.content.readany()
        await server.busy()
        reply.close()
        await server.idle()


async def test_many_disconnects_leave_nothing_behind(server: RunningServer) -> None:
    await server.idle()
    for moment in range(60):
        writer = await open_request(
            server, "/v1/chat/completions", {**CHAT, "stream": bool(moment % 3), "n": moment % 2 + 1}
        )
        await asyncio.sleep(0.001 * (moment % 7))
        writer.transport.abort()
    # The last request may reach the server after it has been seen idle: what counts is that nothing stays.
    async with asyncio.timeout(10):
        while server.engine._streams:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await server.idle()


async def test_a_stalled_reader_is_cut_off(
    engine_address: str, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With socket buffers full, the stream waits, holds little, and gives up after `write_timeout`."""
    async with running_server(engine_address, model, write_timeout=0.5) as server:
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.url.removeprefix("http://").split(":")
        stalled.connect((host, int(port)))
        # With all logprobs a token is about 2 KB of events, so that the kernel's buffers fill early.
        body = json.dumps({**CHAT, "stream": True, "n": 16, "logprobs": True, "top_logprobs": 20}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        stalled.sendall(head.encode() + body)
        try:
            await server.busy()
            async with asyncio.timeout(25):
                while not any("has not read" in record.message for record in caplog.records):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await server.idle()
        finally:
            stalled.close()


class _CutShort:
    """Batches whose consumer is cancelled while it waits for their end, as its connection is lost."""

    async def aclose(self) -> None:
        raise asyncio.CancelledError


async def test_what_was_taken_is_known_even_when_closing_is_cut_short() -> None:
    transcript = Transcript(prompt_tokens=3, num_prompts=1, n=1, with_logprobs=False)
    transcript.add([Chunk(index=0, text="so", token_ids=[7, 8], logprobs=None, finish_reason=None)])
    used: list[tuple[int, ...]] = []
    record = SimpleNamespace(used=lambda *tokens: used.append(tokens), keeps_text=False)
    observation = SimpleNamespace(record=record, close=lambda **_: None)
    generation = Generation(None, transcript, _CutShort(), observation)  # type: ignore[arg-type]
    generation._first = []
    with pytest.raises(asyncio.CancelledError):
        await generation.aclose()
    assert used == [(3, 0, 2)]
