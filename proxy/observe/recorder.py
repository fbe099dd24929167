"""Begins a record with every request, and hands it on when the request has ended: to figures, access log, and spans."""

import re
import time
from http import HTTPStatus
from typing import Protocol

from aiohttp import web

from .record import RequestRecord

RECORD = "penstock_record"
INTERNAL = "internal_server_error"
# W3C trace context, version 00: what is not of this shape is not handed on.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Sink(Protocol):
    """Reads records of requests that have ended."""

    def ended(self, record: RequestRecord) -> None: ...


class Spans(Sink, Protocol):
    """Also marks the beginning: what is handed on to upstreams must name a span that is already there."""

    def begun(self, record: RequestRecord) -> None: ...


class Recorder:
    """The one owner of a record's begin and end.

    Args:
        sinks: told of each record, in this order.
        spans: also told of its beginning; None without tracing.
        keeps_text: excerpts of prompts and answers are wanted.
    """

    def __init__(self, *sinks: Sink, spans: Spans | None = None, keeps_text: bool = False) -> None:
        self._sinks = sinks if spans is None else (*sinks, spans)
        self._spans = spans
        self._keeps_text = keeps_text

    def begin(self, request: web.BaseRequest, request_id: str, route: str) -> RequestRecord:
        """`started` is when the connection's handler read the request's first byte, where it knows."""
        now = time.perf_counter()
        first_byte = getattr(request.protocol, "first_byte", None)
        started = now if first_byte is None else first_byte
        record = RequestRecord(
            request_id=request_id,
            method=request.method,
            route=route,
            started=started,
            time=time.time() - (now - started),
            keeps_text=self._keeps_text,
        )
        traceparent = request.headers.get("traceparent")
        if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
            record.traceparent = traceparent
            record.tracestate = request.headers.get("tracestate")
        request[RECORD] = record
        if self._spans is not None:
            self._spans.begun(record)
        return record

    def end(self, record: RequestRecord, *, status: int, bytes_out: int, aborted: bool) -> None:
        """The last byte is written, or nobody is there to read it. Only the first call for a record counts."""
        if record.ended is not None:
            return
        record.ended = record.waited()
        record.status, record.bytes_out, record.aborted = status, bytes_out, aborted
        if record.error is None and status >= HTTPStatus.BAD_REQUEST and not aborted:
            record.error = _named(status)
        for sink in self._sinks:
            sink.ended(record)


def _named(status: int) -> str:
    """An error without a code of its own, by its status: 404 is not_found."""
    try:
        return HTTPStatus(status).phrase.lower().replace(" ", "_")
    except ValueError:
        return f"status_{status}"


def record_of(request: web.BaseRequest) -> RequestRecord:
    record: RequestRecord = request[RECORD]
    return record
