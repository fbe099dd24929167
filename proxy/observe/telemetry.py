"""OpenTelemetry: one span per request, and figures of those that ask a model, in the `gen_ai` semantic conventions.

Needs the extra `otel`, and is imported only where a collector is set. Spans and figures go out from threads of the SDK; a
collector that is slow or gone costs requests nothing, and what it misses is lost. The SDK reads its own `OTEL_*` variables,
for headers, resource attributes and sampling.
"""

import asyncio
import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from .record import RequestRecord

SERVICE = "penstock"
# Asked every few seconds, by machines.
_PROBES = ("/health", "/metrics")
CLOSING_SECONDS = 2.0

# The boundaries that the conventions ask for.
_TOKENS = tuple(float(4**power) for power in range(14))
_SECONDS = tuple(0.01 * 2**power for power in range(14))
_FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)


class Telemetry:
    """Spans and figures of records.

    Args:
        endpoint: of an OTLP/HTTP collector, as http://host:4318.
    """

    def __init__(self, endpoint: str) -> None:
        endpoint = endpoint.rstrip("/")
        resource = Resource.create({"service.name": SERVICE, "service.version": version("penstock")})
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracers.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces"))
        )
        self._tracer = self._tracers.get_tracer(SERVICE)
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics"))
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        meter = self._meters.get_meter(SERVICE)

        def histogram(name: str, unit: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=bounds)

        self._usage = histogram("gen_ai.client.token.usage", "{token}", _TOKENS)
        self._duration = histogram("gen_ai.server.request.duration", "s", _SECONDS)
        self._first_token = histogram("gen_ai.server.time_to_first_token", "s", _FIRST_TOKEN)
        self._contexts = TraceContextTextMapPropagator()

    def begun(self, record: RequestRecord) -> None:
        """Continues the client's trace; the record then names our own span, for upstreams to continue."""
        if record.route.startswith(_PROBES):
            return
        carrier = {"traceparent": record.traceparent or "", "tracestate": record.tracestate or ""}
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            self._contexts.extract(carrier),
            SpanKind.SERVER,
            start_time=int(1e9 * record.time),
        )
        self._contexts.inject(carrier, set_span_in_context(span))
        record.traceparent, record.span = carrier["traceparent"], span

    def ended(self, record: RequestRecord) -> None:
        if record.span is not None:
            self._end_span(record)
        if record.operation is not None:
            self._count(record)

    async def close(self) -> None:
        """Sends what waits, for `CLOSING_SECONDS` at most."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._tracers.shutdown()
            self._meters.shutdown(timeout_millis=1000 * CLOSING_SECONDS)
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(closed.set)

        # A daemon: a collector that does not answer must not keep the process from ending.
        threading.Thread(target=shut_down, name="penstock-otel-close", daemon=True).start()
        with suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), CLOSING_SECONDS)

    def _end_span(self, record: RequestRecord) -> None:
        span = record.span
        assert isinstance(span, Span)
        if not span.is_recording():  # the client's trace, or a setting, wants no spans of it
            return
        if record.operation is not None:
            span.update_name(f"{record.operation} {record.model_asked}")
        span.set_attributes(
            {name: value for name, value in _attributes(record).items() if value is not None and value != []}
        )
        if record.status >= HTTPStatus.INTERNAL_SERVER_ERROR or (
            record.error and record.status == HTTPStatus.OK
        ):
            span.set_status(StatusCode.ERROR, record.error)
        span.end(int(1e9 * (record.time + record.duration)))

    def _count(self, record: RequestRecord) -> None:
        names: dict[str, AttributeValue] = {
            "gen_ai.operation.name": str(record.operation),
            "gen_ai.provider.name": record.upstream or SERVICE,
            # Never what the client wrote: any text would be a series of its own.
            "gen_ai.request.model": record.model or "unknown",
        }
        for kind, tokens in (("input", record.prompt_tokens), ("output", record.completion_tokens)):
            if tokens is not None:
                self._usage.record(tokens, {**names, "gen_ai.token.type": kind})
        if record.outcome is not None and record.time_to_first_token is not None:
            self._first_token.record(record.time_to_first_token, names)
        if record.error is not None:
            names["error.type"] = record.error
        self._duration.record(record.duration, names)


def _attributes(record: RequestRecord) -> dict[str, AttributeValue | None]:
    attributes: dict[str, AttributeValue | None] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "error.type": record.error,
        "penstock.request_id": record.request_id,
        "penstock.tenant": record.tenant,
        "penstock.aborted": record.aborted or None,
    }
    if record.operation is None:
        return attributes
    first = record.time_to_first_token if record.outcome is not None else None
    return {
        **attributes,
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": record.upstream or SERVICE,
        "gen_ai.request.model": record.model_asked,
        "gen_ai.request.stream": record.stream,
        "gen_ai.response.model": record.model,
        "gen_ai.response.id": record.response_id,
        "gen_ai.response.finish_reasons": record.finish_reasons,
        "gen_ai.response.time_to_first_chunk": first,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.input.messages": _message("user", record.prompt),
        "gen_ai.output.messages": _message("assistant", record.answer),
        "penstock.cache": record.outcome,
        "penstock.routing": record.routing,
        "penstock.overhead": record.overhead,
        "penstock.cost": record.cost,
    }


def _message(role: str, text: str | None) -> str | None:
    """In the conventions' form: JSON of messages in parts. There is a text only where `log_prompts` is on."""
    if text is None:
        return None
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])
