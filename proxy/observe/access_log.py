"""The access log: one line per request, as JSON or as text. It tells who asked what kind of thing and what became of it.

Prompts and answers are in no record unless the operator wants them; keys and headers never are. Whatever a client chose (a
model's name) is escaped, so that no request can write a line of its own.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import orjson

from ..sse import one_line
from .record import RequestRecord

_MAX_NAME = 256
_PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)


class AccessLog:
    """A sink of records. `write` takes whole lines as bytes, and returns at once."""

    def __init__(self, form: Literal["text", "json"], write: Callable[[bytes], None]) -> None:
        self._line = json_line if form == "json" else text_line
        self._write = write

    def ended(self, record: RequestRecord) -> None:
        self._write(self._line(record))


def fields_of(record: RequestRecord) -> dict[str, object]:
    """A line's fields in their order. What is unknown, or makes no sense here, is None."""
    fields: dict[str, object] = {
        "time": _timestamp(record.time),
        "request_id": record.request_id,
        "trace_id": None if record.traceparent is None else record.traceparent[3:35],
        "tenant": record.tenant,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "error": record.error,
        "aborted": record.aborted,
        "model_asked": None if record.model_asked is None else record.model_asked[:_MAX_NAME],
        "model": record.model,
        "response_id": record.response_id,
        "stream": record.stream,
        "cache": record.outcome,
        "routing": record.routing,
        "upstream": record.upstream,
        "targets": record.targets,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "finish_reasons": record.finish_reasons,
        "ttft_ms": _milliseconds(record.time_to_first_token),
        "duration_ms": _milliseconds(record.duration),
        "overhead_ms": _milliseconds(record.overhead),
        "saved_ms": _milliseconds(record.saved_seconds),
        "cost": record.cost,
        "saved_cost": record.saved_cost,
        "bytes_out": record.bytes_out,
    }
    if record.keeps_text:
        fields["prompt"], fields["answer"] = record.prompt, record.answer
    return fields


def json_line(record: RequestRecord) -> bytes:
    fields = fields_of(record)
    try:
        line = orjson.dumps(fields)
    except orjson.JSONEncodeError:
        # Lone surrogates: of a header that is no UTF-8, say. Rare, so that looking for them comes after failing.
        line = orjson.dumps({name: _encodable(value) for name, value in fields.items()})
    return (line if line.isascii() else one_line(line)) + b"\n"


def text_line(record: RequestRecord) -> bytes:
    """`name=value` pairs of what is known; a value that is no plain word is quoted and escaped as in JSON."""
    words = []
    for name, value in fields_of(record).items():
        if value is None or value is False or value == []:
            continue
        if isinstance(value, list):
            value = ",".join(value)
        word = str(value)
        if not _PLAIN.fullmatch(word):
            word = one_line(orjson.dumps(_encodable(word))).decode()
        words.append(f"{name}={word}")
    return " ".join(words).encode() + b"\n"


def _encodable(value: object) -> object:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
