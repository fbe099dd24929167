"""Parts of an answer as responses and events, byte for byte, and whatever the parts are."""

import json
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from penstock.errors import OverloadedError
from penstock.proxy.answer import Part
from penstock.proxy.answer_writer import Finish, Reason
from penstock.proxy.responses.request import ResponsesRequest
from penstock.proxy.responses.response import head_of, response_of
from penstock.proxy.responses.writer import ResponseWriter
from penstock.proxy.usage import Usage

GOLDEN = Path(__file__).parent / "golden"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ASKED = ResponsesRequest(model="m", input="x", tools=[{"type": "function", "name": "f"}])
HEAD = head_of(ASKED, id="resp_1", created=1700000000, model="m", temperature=1.0, top_p=None)
USAGE = Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2)
BATCHES = [
    [Part("reasoning", "so ")],
    [Part("reasoning", "…"), Part("content", 'Hé\n"q"\u2028')],
    [Part("content", "l")],
    [Part("name", "f"), Part("arguments", '{"a":')],
    [Part("arguments", "1}"), Part("name", "f", 1), Part("arguments", "{}", 1)],
]


def writer() -> ResponseWriter:
    numbers = count()
    return ResponseWriter(HEAD, call_ids=lambda: f"call{next(numbers)}", clock=lambda: 1700000001.5)


def written(batches: list[list[Part]], finish: Finish) -> bytes:
    form = writer()
    return form.begin() + b"".join(map(form.parts, batches)) + form.end(finish, USAGE)


def events_of(stream: bytes) -> list[dict[str, Any]]:
    blocks = stream.decode().split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.split("\ndata: ")[1]) for block in blocks]


def test_golden_stream() -> None:
    assert written(BATCHES, Finish("tool_calls")) == (GOLDEN / "responses.sse").read_bytes()


def test_golden_failure() -> None:
    form = writer()
    stream = form.begin() + form.parts([Part("content", "half")])
    stream += form.failed(OverloadedError("too much", retry_after=1))
    assert stream == (GOLDEN / "responses_failed.sse").read_bytes()
    *_, failed, error = events_of(stream)
    assert failed["response"]["output"][0]["content"][0]["text"] == "half"
    assert error["error"]["message"] == error["message"] == "too much"


def test_a_failure_before_anything_is_a_stream_too() -> None:
    events = events_of(writer().failed(OverloadedError("too much")))
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.failed",
        "error",
    ]


TEXT = st.text(min_size=1, max_size=8)
ANSWERS = st.lists(
    st.one_of(
        st.builds(Part, st.just("reasoning"), TEXT),
        st.builds(Part, st.just("content"), TEXT),
        st.lists(TEXT, max_size=3).map(
            lambda pieces: [Part("name", "f"), *(Part("arguments", p) for p in pieces)]
        ),
    ),
    max_size=12,
).map(lambda found: [part for each in found for part in (each if isinstance(each, list) else [each])])


@given(parts=ANSWERS, cuts=st.lists(st.integers(0, 40)), reason=st.sampled_from(Reason.__args__))
def test_a_stream_tells_the_response(parts: list[Part], cuts: list[int], reason: Reason) -> None:
    """However it is cut into batches, and whatever the answer: every event has its shape, deltas are what is done, and the
    last event is the response that is told without a stream."""
    places = sorted({0, len(parts), *(cut for cut in cuts if cut < len(parts))})
    batches = [parts[start:end] for start, end in pairwise(places)]
    finish = Finish(reason)
    events = events_of(written(batches, finish))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = events[-1]["response"]
    whole = response_of(HEAD, parts, finish, USAGE, now=1700000001)
    for item, other in zip(response["output"], whole["output"], strict=True):
        if item["type"] == "function_call":
            other["call_id"] = item["call_id"]
    assert response == whole
    done = {event["output_index"]: event["item"] for event in events if event["type"].endswith("item.done")}
    assert [done[place] for place in range(len(done))] == response["output"]
    deltas: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            deltas[event["output_index"]] = deltas.get(event["output_index"], "") + event["delta"]
    for place, item in enumerate(response["output"]):
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert deltas.get(place, "") == text
    if all(item["type"] != "reasoning" for item in response["output"]):
        Response.model_validate(response)
        for event in events:
            EVENT.validate_python(event)


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_status(reason: Reason, status: str, why: str | None) -> None:
    response = response_of(HEAD, [Part("content", "a")], Finish(reason), USAGE, now=5)
    assert response["status"] == response["output"][0]["status"] == status
    assert response["incomplete_details"] == (why and {"reason": why})
    assert response["completed_at"] == (5 if status == "completed" else None)


def test_no_reader_finds_a_line_end_inside_an_event() -> None:
    text = "".join(map(chr, range(0x20))) + "\x7f\x85\u2028\u2029"
    parts = [Part("content", text), Part("name", "f"), Part("arguments", text)]
    for block in written([parts], Finish("stop")).decode().split("\n\n")[:-1]:
        assert len(block.splitlines()) == 2
