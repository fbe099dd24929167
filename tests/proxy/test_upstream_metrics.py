"""The figures of upstreams, told by real attempts at a real upstream: another server of ours."""

import json
from pathlib import Path

import aiohttp
import pytest
from running_server import RunningServer, running_server

from penstock.tables import Upstream, UpstreamModel

BODY = {"prompt": "abc", "max_tokens": 3, "ignore_eos": True}


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "end-to-end"}


async def post(server: RunningServer, model: str, **fields: object) -> int:
    body = {**BODY, "model": model, **fields}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + "/v1/completions", json=body, headers=HEADERS) as reply,
    ):
        await reply.read()
        return reply.status


async def test_attempts_tokens_and_traces_of_an_upstream(
    engine_address: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running_server(engine_address, model, access_log="json") as acme:
        text = await ask_by_way_of_another(acme, engine_address, model)
    check_figures(text)
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line[0] == "{"]
    assert [line["request_id"] for line in lines if line["model_asked"] == "tiny"] == ["end-to-end"] * 3
    assert [line["trace_id"] for line in lines if line["model_asked"] == "tiny"] == [TRACE] * 3
    whole, stream, refused, gone = (
        line for line in lines if line["targets"] and line["model_asked"] != "tiny"
    )
    assert (whole["upstream"], whole["model"], whole["completion_tokens"]) == ("acme", "acme/tiny", 3)
    assert stream["ttft_ms"] <= stream["duration_ms"] and stream["overhead_ms"] < stream["duration_ms"]
    assert stream["finish_reasons"] == ["length"] and stream["completion_tokens"] == 3
    assert (refused["status"], refused["completion_tokens"]) == (400, None)
    assert (gone["status"], gone["error"], gone["aborted"]) == (502, "upstream_failed", False)


async def ask_by_way_of_another(acme: RunningServer, engine_address: str, model: Path) -> str:
    """Its figures afterwards."""
    known = {"tiny": UpstreamModel()}
    upstreams = {
        "acme": Upstream(base_url=f"{acme.url}/v1", models=known, retries=0),
        "gone": Upstream(base_url="http://127.0.0.1:9/v1", models=known, retries=0),
    }
    async with running_server(engine_address, model, upstreams=upstreams, access_log="json") as ours:
        assert await post(ours, "acme/tiny") == 200
        assert await post(ours, "acme/tiny", stream=True) == 200
        assert await post(ours, "acme/tiny", max_tokens=-1) == 400
        assert await post(ours, "gone/tiny") == 502
        async with aiohttp.ClientSession() as session, session.get(ours.url + "/metrics") as reply:
            return await reply.text()


def check_figures(text: str) -> None:
    for line in (
        'penstock_upstream_attempts_total{outcome="success",upstream="acme"} 2.0',
        'penstock_upstream_attempts_total{outcome="refused",upstream="acme"} 1.0',
        'penstock_upstream_attempts_total{outcome="connect_error",upstream="gone"} 1.0',
        'penstock_upstream_breaker_state{upstream="acme"} 0.0',
        'penstock_upstream_first_token_seconds_count{upstream="acme"} 2.0',
        'penstock_upstream_tokens_total{kind="completion",upstream="acme"} 6.0',
        'penstock_model_requests_total{model="acme/tiny"} 3.0',
        'penstock_overhead_seconds_count{part="after"} 2.0',
    ):
        assert line in text
