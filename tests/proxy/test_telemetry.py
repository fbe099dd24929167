"""Traces and figures as a collector receives them: over a real socket, decoded from protobuf."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from running_server import running_server

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the-question-nobody-may-read"
ASK = {"model": "gpt", "prompt": SECRET, "max_tokens": 4, "ignore_eos": True}


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Span] = []
        self.points: dict[str, list[Any]] = {}
        self.services: set[str] = set()
        self.raw = b""

    async def traces(self, request: web.Request) -> web.Response:
        self.raw += await request.read()
        for of_resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            self.services.add(values(of_resource.resource.attributes)["service.name"])
            for of_scope in of_resource.scope_spans:
                self.spans += of_scope.spans
        return web.Response()

    async def metrics(self, request: web.Request) -> web.Response:
        for of_resource in ExportMetricsServiceRequest.FromString(await request.read()).resource_metrics:
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    self.points.setdefault(metric.name, []).extend(metric.histogram.data_points)
        return web.Response()

    def span(self, request_id: str) -> Span:
        (found,) = (
            span for span in self.spans if values(span.attributes)["penstock.request_id"] == request_id
        )
        return found


def values(attributes: Any) -> dict[str, Any]:
    """Protobuf's key-values as a dict."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        inner = getattr(value, kind)
        return [plain(item) for item in inner.values] if kind == "array_value" else inner

    return {attribute.key: plain(attribute.value) for attribute in attributes}


@pytest_asyncio.fixture(loop_scope="session")
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.add_routes([web.post("/v1/traces", made.traces), web.post("/v1/metrics", made.metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def test_a_request_is_a_span_of_its_clients_trace(
    engine_address: str, model: Path, collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"otel_endpoint": collector.url, "access_log": "json", "model_aliases": {"gpt": "tiny"}}
    async with (
        running_server(engine_address, model, **settings) as server,
        aiohttp.ClientSession(server.url) as session,
    ):

        async def post(body: dict[str, Any], request_id: str, **headers: str) -> None:
            headers["x-request-id"] = request_id
            async with session.post("/v1/completions", json=body, headers=headers) as reply:
                await reply.read()

        await post(
            {**ASK, "stream": True}, "continued", traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="a=b"
        )
        await post(ASK, "alone", traceparent="00-no-such-01")
        await post(ASK, "unsampled", traceparent=f"00-{TRACE}-{PARENT}-00")
        await post({**ASK, "max_tokens": -1}, "refused")
        await session.get("/metrics")
    # Closing the server has sent all of it; who only looks is in no trace.
    assert len(collector.spans) == 3
    assert collector.services == {"penstock"}
    assert SECRET.encode() not in collector.raw
    span = collector.span("continued")
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.trace_state) == (TRACE, PARENT, "a=b")
    assert (span.name, span.kind) == ("text_completion gpt", Span.SPAN_KIND_SERVER)
    told = values(span.attributes)
    assert told["gen_ai.operation.name"] == "text_completion" and told["gen_ai.provider.name"] == "penstock"
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("gpt", "tiny")
    assert told["gen_ai.usage.output_tokens"] == 4 and told["gen_ai.usage.input_tokens"] > 4
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert told["gen_ai.request.stream"] is True
    seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert 0 < told["gen_ai.response.time_to_first_chunk"] <= seconds < 5
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/completions", 200)
    assert "gen_ai.input.messages" not in told and "gen_ai.output.messages" not in told

    alone = collector.span("alone")
    assert alone.trace_id.hex() != TRACE and not alone.parent_span_id
    assert "unsampled" not in str(collector.spans), "the client wants none"
    refused = collector.span("refused")
    assert values(refused.attributes)["error.type"] == "invalid_request_error"
    assert refused.status.code == Status.STATUS_CODE_UNSET, "the client's fault, in a server's span"
    traces = re.findall(r'"request_id":"(\w+)","trace_id":"(\w+)"', capfd.readouterr().out)
    assert dict(traces)["continued"] == TRACE and dict(traces)["alone"] == alone.trace_id.hex()

    (duration_ok, duration_refused) = sorted(
        collector.points["gen_ai.server.request.duration"], key=lambda point: -point.count
    )
    assert (duration_ok.count, duration_refused.count) == (3, 1)
    assert values(duration_refused.attributes)["error.type"] == "invalid_request_error"
    assert values(duration_ok.attributes)["gen_ai.request.model"] == "tiny", "no series of any name"
    usage = {
        values(point.attributes)["gen_ai.token.type"]: point.sum
        for point in collector.points["gen_ai.client.token.usage"]
    }
    assert usage["output"] == 12 and usage["input"] > 12
    assert [point.count for point in collector.points["gen_ai.server.time_to_first_token"]] == [3]


async def test_texts_are_told_where_they_are_asked_for(
    engine_address: str, model: Path, collector: Collector
) -> None:
    settings = {"otel_endpoint": collector.url + "/", "log_prompts": True, "model_aliases": {"gpt": "tiny"}}
    async with (
        running_server(engine_address, model, **settings) as server,
        aiohttp.ClientSession(server.url) as session,
    ):
        body = {**ASK, "logit_bias": server.spelling("a")}
        async with session.post("/v1/completions", json=body) as reply:
            assert reply.status == 200
    told = values(collector.spans[0].attributes)
    assert SECRET in told["gen_ai.input.messages"]
    assert told["gen_ai.output.messages"] == (
        '[{"role": "assistant", "parts": [{"type": "text", "content": "aaaa"}]}]'
    )


async def test_a_collector_that_is_gone_costs_requests_nothing(engine_address: str, model: Path) -> None:
    settings = {"otel_endpoint": "http://127.0.0.1:9", "model_aliases": {"gpt": "tiny"}}
    async with (
        running_server(engine_address, model, **settings) as server,
        aiohttp.ClientSession(server.url) as session,
        session.post("/v1/completions", json=ASK) as reply,
    ):
        assert reply.status == 200
