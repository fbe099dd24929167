"""The server itself is told something new, or killed."""

import asyncio
import os
import re
import signal
import subprocess
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from faulty_upstream import Exchange, FaultyUpstream, chat_event, chat_events, good, streamed_then
from penstock_command import PENSTOCK
from running_gateway import CHAT_PATH, chat

COMMITTED = 0.5  # stores are collected for 10 ms, and committed together


def write_settings(folder: Path, upstream: FaultyUpstream) -> Path:
    file = folder / "penstock.toml"
    file.write_text(
        f"model = 'none'\nport = 0\nembedding_model = 'none'\ncache_path = '{folder / 'cache'}'\n"
        f"[upstreams.up]\nbase_url = '{upstream.url}'\nmodels = ['*']\n"
    )
    return file


def start(folder: Path, upstream: FaultyUpstream) -> tuple[subprocess.Popen[str], str]:
    file = write_settings(folder, upstream)
    process = subprocess.Popen(
        [*PENSTOCK, "serve", "--config", str(file)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r" at (http://\S+)", line):
            return process, found[1]
    raise AssertionError("it has not started")


@pytest.mark.fault(
    "`kill -9` in mid-stream, and a restart",
    "clients: a cut; upstream: cut off; afterwards: what was kept half a second before is a hit, what was being sent is not",
)
async def test_kill(upstream: FaultyUpstream, tmp_path: Path) -> None:
    process, url = await asyncio.to_thread(start, tmp_path, upstream)
    try:
        async with aiohttp.ClientSession() as session:
            async with session.post(url + CHAT_PATH, json=chat(stream=True)) as reply:
                assert await reply.read() == b"".join(chat_events())
            await asyncio.sleep(COMMITTED)
            upstream.then(streamed_then(Exchange.never, chat_events()[0], chat_event(content="half")))
            running = await session.post(url + CHAT_PATH, json=chat(stream=True, seed=1))
            await running.content.readuntil(b"half")
            calls = upstream.calls
            os.killpg(process.pid, signal.SIGKILL)
            with pytest.raises(aiohttp.ClientError):
                await running.content.read()
            await asyncio.wait_for(upstream.exchanges[-1].aborted.wait(), 2)
        process.wait(5)
        process, url = await asyncio.to_thread(start, tmp_path, upstream)
        async with aiohttp.ClientSession() as session:
            async with session.post(url + CHAT_PATH, json=chat()) as reply:
                assert (reply.status, reply.headers["x-penstock-cache"]) == (200, "hit")
                assert (await reply.json())["choices"][0]["message"]["content"] == "Hello world"
            assert upstream.calls == calls
            async with session.post(url + CHAT_PATH, json=chat(stream=True, seed=1)) as reply:
                assert reply.headers["x-penstock-cache"] == "miss"
                assert await reply.read() == b"".join(chat_events())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


@pytest.mark.fault(
    "The settings change while hundreds of streams run and begin",
    "clients: each stream whole; the old upstream: what it had begun; the new one: all that begins afterwards",
)
async def test_reload_under_load(upstream: FaultyUpstream, other: FaultyUpstream, tmp_path: Path) -> None:
    for each in (upstream, other):
        each.usual = good(between=0.05)
    process, url = await asyncio.to_thread(start, tmp_path, upstream)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(seed: int) -> None:
                async with session.post(url + CHAT_PATH, json=chat(stream=True, seed=seed)) as reply:
                    assert await reply.read() == b"".join(chat_events())

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                changed = False
                for seed in count():
                    group.create_task(ask(seed))
                    if upstream.calls >= 100 and not changed:
                        write_settings(tmp_path, other)
                        os.kill(process.pid, signal.SIGHUP)
                        changed = True
                    if other.calls >= 100:
                        break
                    await asyncio.sleep(0.005)
            asked = upstream.calls
            await ask(seed + 1)
            assert upstream.calls == asked
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)
