"""`penstock top` on a running server: as a frame, as JSON, on a pipe, and in a terminal that it gives back."""

import asyncio
import json
import os
import pty
import re
import sys
import termios

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer

from penstock.proxy.observe.top_figures import Scrape, Spread, figures_of, quantile
from penstock.top_frame import frame

PENSTOCK = [sys.executable, "-m", "penstock", "top"]


async def top(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *PENSTOCK, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def ask(server: RunningServer, count: int) -> None:
    for _ in range(count):
        await server.client().completions.create(
            model="tiny", prompt="abc", max_tokens=5, extra_body={"ignore_eos": True}
        )


async def test_json_tells_the_rates_between_two_scrapes(server: RunningServer) -> None:
    running = asyncio.create_task(top(server.url, "--json", "--interval", "1"))
    while not running.done():
        await ask(server, 1)
    code, out, err = await running
    figures = json.loads(out)
    assert code == 0 and not err
    assert (figures["ready"], figures["model"]) == ("ready", "tiny")
    answers = figures["statuses"]["200"]
    assert answers >= 2 and figures["requests_per_second"] == pytest.approx(answers / figures["seconds"])
    assert figures["outcomes"]["bypass"] >= 2 and figures["hit_share"] is None
    assert figures["tokens_out_per_second"] > 5
    assert 0 < figures["ttft"]["p50"] <= figures["ttft"]["p99"] and figures["itl"]["p50"] > 0
    assert 0 < figures["overhead"]["p50"] < figures["ttft"]["p99"]
    assert figures["running"] in (0, 1) and 0 <= figures["kv_usage"] <= 1
    assert figures["errors_per_second"] == 0 and figures["upstreams"] == []


async def test_one_frame_is_plain_text(server: RunningServer) -> None:
    code, out, _ = await top(f"{server.url}/v1", "--once", "--interval", "0.1")
    assert code == 0 and "\x1b" not in out
    assert out.startswith(f"penstock {server.url}  ready  tiny\n")
    assert {line.split()[0] for line in out.splitlines()[2:]} == {
        "requests", "engine", "tokens", "first", "next", "proxy", "cache", "KV"
    }  # fmt: skip


async def test_a_server_that_is_not_there_is_one_line(server: RunningServer) -> None:
    code, out, err = await top("http://127.0.0.1:9", "--once")
    assert (code, out) == (1, "") and err.startswith(
        "penstock top: http://127.0.0.1:9/metrics does not answer"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("way", ["q", "ctrl-c"])
async def test_in_a_terminal_it_gives_back_what_it_found(server: RunningServer, way: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    termios.tcsetwinsize(theirs, (12, 60))
    process = await asyncio.create_subprocess_exec(
        *PENSTOCK, server.url, "--interval", "0.1", stdin=theirs, stdout=theirs, start_new_session=True
    )
    seen = b""
    while b"requests" not in seen:
        seen += await asyncio.to_thread(os.read, ours, 1 << 16)
    assert termios.tcgetattr(theirs)[3] & termios.ECHO == 0
    if way == "q":
        os.write(ours, b"q")
    else:
        process.send_signal(2)
    code = await process.wait()
    seen += await asyncio.to_thread(os.read, ours, 1 << 16)
    assert code == (0 if way == "q" else 130)
    assert termios.tcgetattr(theirs) == before
    assert seen.startswith(b"\x1b[?1049h\x1b[?25l") and seen.endswith(b"\x1b[?25h\x1b[?1049l")
    shown = re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", seen.decode())
    assert max(map(len, shown.splitlines())) <= 60
    os.close(ours)
    os.close(theirs)


async def test_on_a_pipe_frames_follow_one_another_until_nobody_reads(server: RunningServer) -> None:
    process = await asyncio.create_subprocess_exec(
        *PENSTOCK, server.url, "--interval", "0.1", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode() for _ in range(24)]
    assert sum(line.startswith("penstock http") for line in lines) >= 2
    assert not any("\x1b" in line for line in lines)
    process.terminate()
    await process.wait()


BEFORE = """# TYPE penstock_http_requests counter
penstock_http_requests_total{route="/a",status="200"} 100
penstock_http_requests_total{route="/a",status="500"} 7
# TYPE penstock_cache_requests counter
penstock_cache_requests_total{outcome="hit"} 5
# TYPE penstock_upstream_attempts counter
penstock_upstream_attempts_total{outcome="success",upstream="acme"} 10
"""
AFTER = """# TYPE penstock_http_requests counter
penstock_http_requests_total{route="/a",status="200"} 3
penstock_http_requests_total{route="/a",status="500"} 9
# TYPE penstock_cache_requests counter
penstock_cache_requests_total{outcome="hit"} 8
penstock_cache_requests_total{outcome="miss"} 1
penstock_cache_requests_total{outcome="bypass"} 6
# TYPE penstock_upstream_attempts counter
penstock_upstream_attempts_total{outcome="success",upstream="acme"} 13
penstock_upstream_attempts_total{outcome="timeout",upstream="acme"} 1
# TYPE penstock_upstream_breaker_state gauge
penstock_upstream_breaker_state{upstream="acme"} 2
"""


def scrape(text: str, at: float) -> Scrape:
    return Scrape(text_string_to_metric_families(text), at)


def test_figures_of_two_scrapes_without_an_engine() -> None:
    """A counter that fell was started anew."""
    figures = figures_of(scrape(BEFORE, 10.0), scrape(AFTER, 12.0), ready="ready")
    assert (figures.requests_per_second, figures.errors_per_second) == (2.5, 1.0)
    assert figures.statuses == {"200": 3, "500": 2}
    assert figures.outcomes == {"bypass": 6, "hit": 3, "miss": 1} and figures.hit_share == 0.75
    assert (figures.running, figures.kv_usage, figures.ttft) == (None, None, Spread(None, None))
    (acme,) = figures.upstreams
    assert (acme.attempts_per_second, acme.failed, acme.breaker) == (2.0, 0.25, "open")
    for width in (30, 80, 200):
        lines = frame(figures, url="http://x", width=width)
        assert max(map(len, lines)) <= width
        assert any(line.startswith("acme") for line in lines)


@pytest.mark.parametrize(
    ("counts", "share", "wanted"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0), (float("inf"), 0.0)], 0.5, None),
        ([(1.0, 4.0), (2.0, 4.0), (float("inf"), 4.0)], 0.5, 0.5),
        ([(1.0, 2.0), (2.0, 4.0), (float("inf"), 4.0)], 0.75, 1.5),
        ([(1.0, 0.0), (float("inf"), 3.0)], 0.99, 1.0),
    ],
)
def test_quantiles_are_those_of_prometheus(
    counts: list[tuple[float, float]], share: float, wanted: float | None
) -> None:
    assert quantile(counts, share) == wanted
