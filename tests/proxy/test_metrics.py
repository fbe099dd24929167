"""What the figures mean: where times begin, whose time is whose, and how many series there can be."""

import asyncio
import json
import re
import socket
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from running_server import RunningServer, running_server

from penstock.proxy.observe.record import RequestRecord
from penstock.proxy.observe.series import OTHER, BoundedNames, Figures
from penstock.proxy.observe.upstream_metrics import UpstreamFamily

DOCS = Path(__file__).parents[2] / "docs/observability.md"
BODY = json.dumps({"model": "tiny", "prompt": "abc", "max_tokens": 3, "ignore_eos": True}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


async def scrape(server: RunningServer) -> str:
    async with aiohttp.ClientSession() as session, session.get(server.url + "/metrics") as reply:
        return await reply.text()


async def answered(server: RunningServer, *pieces: bytes, pause: float) -> str:
    """The lines of the access log's request, sent in pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    await asyncio.sleep(pause)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(pause)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = re.search(r"content-length: (\d+)", head)
    assert length is not None
    await reader.readexactly(int(length[1]))
    writer.close()
    return head


async def test_time_begins_with_the_first_byte_and_the_clients_own_is_not_ours(
    engine_address: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither an idle connection nor a slow upload is overhead; the wait for the rest of a header is part of a request."""
    head = HEAD % len(BODY)
    async with running_server(engine_address, model, access_log="json") as server:
        await answered(server, head + BODY, pause=0.4)
        await answered(server, head[:20], head[20:] + BODY, pause=0.4)
        await answered(server, head, BODY[:9], BODY[9:], pause=0.4)
    idle, halved, slow = (json.loads(line) for line in capfd.readouterr().out.splitlines() if line[0] == "{")
    assert idle["duration_ms"] < 350
    assert halved["ttft_ms"] > 390 and halved["overhead_ms"] > 390
    assert slow["ttft_ms"] > 790 and slow["overhead_ms"] < 350


async def test_a_second_request_of_a_connection_begins_anew(
    engine_address: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running_server(engine_address, model, access_log="json") as server:
        port = int(server.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(HEAD % len(BODY) + BODY)
            await reader.readuntil(b"}}}")
            await asyncio.sleep(0.4)
        writer.close()
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines() if line[0] == "{")
    assert first["duration_ms"] < 350 and second["duration_ms"] < 350


async def a_slow_reader(
    server: RunningServer, **fields: object
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """It has asked for some 100 kB, of which the kernel takes little."""
    server.http._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    body = {**json.loads(BODY), "max_tokens": 200, "logprobs": 5, "n": 4, **fields}
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 12)
    writer.write(HEAD % len(data) + data)
    return reader, writer


async def test_a_reader_that_is_behind_is_not_overhead(
    engine_address: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Writes that wait for it are its own time."""
    async with running_server(engine_address, model, access_log="json") as server:
        reader, writer = await a_slow_reader(server, stream=True)
        await asyncio.sleep(1)
        while not (await reader.read(1 << 20)).endswith(b"0\r\n\r\n"):
            pass
        writer.close()
    (line,) = (json.loads(line) for line in capfd.readouterr().out.splitlines() if line[0] == "{")
    assert line["completion_tokens"] == 800
    assert line["duration_ms"] > 900
    assert line["overhead_ms"] < line["duration_ms"] / 2


async def test_who_leaves_while_a_body_is_written_is_on_record(
    engine_address: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running_server(engine_address, model, access_log="json") as server:
        reader, writer = await a_slow_reader(server)
        await reader.read(100)
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.1)
    (line,) = (json.loads(line) for line in capfd.readouterr().out.splitlines() if line[0] == "{")
    assert (line["status"], line["aborted"], line["completion_tokens"]) == (200, True, 800)


async def test_figures_of_a_model_bear_its_served_name(engine_address: str, model: Path) -> None:
    """Whatever names clients write make no series."""
    async with running_server(engine_address, model, model_aliases={"*": "tiny"}) as server:
        async with aiohttp.ClientSession() as session:
            for name in ("tiny", "gpt-4o", "any-name-at-all"):
                body = {**json.loads(BODY), "model": name}
                async with session.post(server.url + "/v1/completions", json=body) as reply:
                    assert reply.status == 200
        text = await scrape(server)
    assert 'penstock_model_requests_total{model="tiny"} 3.0' in text
    assert 'penstock_model_tokens_total{kind="completion",model="tiny"} 9.0' in text
    assert "any-name" not in text and "gpt-4o" not in text
    assert 'penstock_overhead_seconds_count{part="before"} 3.0' in text
    assert 'penstock_overhead_seconds_count{part="after"} 3.0' in text


def test_names_that_are_not_ours_are_bounded() -> None:
    names = BoundedNames(3)
    assert {names[f"reason {number}"] for number in range(1000)} == {
        OTHER,
        "reason 0",
        "reason 1",
        "reason 2",
    }
    assert names["reason 1"] == "reason 1" and len(names) == 3


def test_upstreams_tell_of_attempts_breaker_tokens_and_money() -> None:
    registry = CollectorRegistry()
    figures = Figures(registry)
    upstream = UpstreamFamily(figures, registry).upstream("acme")
    upstream.attempt("timeout", "open")
    upstream.attempt("success", "half_open")
    upstream.first_token(0.3)
    record = RequestRecord(request_id="r", method="POST", route="/", started=0.0, time=0.0)
    upstream.answered(record, None)
    record.used(7, None, 5)
    upstream.answered(record, 0.25)
    figures.flush()
    text = generate_latest(registry).decode()
    for line in (
        'penstock_upstream_attempts_total{outcome="timeout",upstream="acme"} 1.0',
        'penstock_upstream_attempts_total{outcome="success",upstream="acme"} 1.0',
        'penstock_upstream_breaker_state{upstream="acme"} 1.0',
        'penstock_upstream_first_token_seconds_sum{upstream="acme"} 0.3',
        'penstock_upstream_tokens_total{kind="prompt",upstream="acme"} 7.0',
        'penstock_upstream_tokens_total{kind="completion",upstream="acme"} 5.0',
        'penstock_upstream_cost_total{upstream="acme"} 0.25',
        'penstock_upstream_unknown_total{upstream="acme",what="usage"} 1.0',
        'penstock_upstream_unknown_total{upstream="acme",what="cost"} 1.0',
    ):
        assert line in text
    assert 'kind="cached"' not in text, "unknown is not 0"


async def test_the_documentation_has_every_series(server: RunningServer) -> None:
    """As they are described at /metrics, in its order; what is asserted may be copied into the page."""
    text = await scrape(server)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)", text, re.MULTILINE))
    described = re.findall(r"^# HELP (\S+) (.*)", text, re.MULTILINE)
    wanted = [f"| `{name}` | {kinds[name]} | {meaning} |" for name, meaning in described]
    told = [line for line in DOCS.read_text().splitlines() if line.startswith("| `penstock_")]
    assert told == wanted, "\n".join(wanted)


def test_what_is_tallied_is_what_would_have_been_observed() -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    figures = Figures(registries[0])
    tally = figures.histogram("h", "h", "like", buckets=(0.1, 0.2, 0.4))["this",]
    other = Histogram("h", "h", ["like"], buckets=(0.1, 0.2, 0.4), registry=registries[1]).labels("this")
    values = [0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 7.0] * 9
    for value in values:
        tally.observe(value)
        other.observe(value)
    figures.flush()
    figures.flush()
    written, observed = (generate_latest(registry).splitlines() for registry in registries)
    assert [line for line in written if b"_sum" not in line] == [
        line for line in observed if b"_sum" not in line
    ]
    assert registries[0].get_sample_value("h_sum", {"like": "this"}) == pytest.approx(sum(values))
