"""What an answer says is read alike however it is cut, and can be told again."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.cache import CachedCompletion
from penstock.errors import UpstreamError
from penstock.proxy.upstreams.events import data_of, split
from penstock.proxy.upstreams.reading import MAX_KEPT_CHARACTERS, OpenAIReading, TokenCounts, tokens_of
from penstock.proxy.upstreams.replay import as_stream

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
PIECES = st.lists(TEXT, max_size=4)
NAME = st.text("abc", min_size=1, max_size=4)
HEAD = {"id": "c1", "created": 1, "model": "m", "system_fingerprint": "fp"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}


@st.composite
def deltas(draw: st.DrawFn, chat: bool) -> list[dict[str, Any]]:
    """Of one choice, in the order they come."""
    if not chat:
        pieces = [{"text": text} for text in draw(PIECES)]
    else:
        pieces = [{"role": "assistant", "content": ""}]
        pieces += [{"reasoning_content": text} for text in draw(PIECES)]
        pieces += [{"content": text} for text in draw(PIECES)]
        for number in range(draw(st.integers(0, 3))):
            function = {"name": draw(NAME), "arguments": ""}
            call = {"index": number, "id": f"call{number}", "type": "function", "function": function}
            pieces.append({"tool_calls": [call]})
            pieces += [
                {"tool_calls": [{"index": number, "function": {"arguments": text}}]} for text in draw(PIECES)
            ]
        pieces = [{"delta": piece} for piece in pieces]
    if draw(st.booleans()):
        for piece in pieces:
            token = {"token": draw(TEXT), "logprob": -0.5, "bytes": [1, 2], "top_logprobs": []}
            piece["logprobs"] = {"content": [token]} if chat else {"tokens": ["a"], "token_logprobs": [-0.5]}
    return pieces


@st.composite
def streams(draw: st.DrawFn) -> tuple[bool, list[bytes]]:
    """The data of an answer's events, its choices mixed."""
    chat = draw(st.booleans())
    waiting = {index: draw(deltas(chat)) for index in range(draw(st.integers(1, 3)))}
    end: dict[str, Any] = {"finish_reason": draw(st.sampled_from(["stop", "tool_calls"]))}
    end |= {"delta": {}} if chat else {"text": ""}
    events = []
    while waiting:
        index = draw(st.sampled_from(sorted(waiting)))
        if waiting[index]:
            piece = {"index": index, "finish_reason": None, "logprobs": None, **waiting[index].pop(0)}
        else:
            piece = {"index": index, **end}
            del waiting[index]
        kind = "chat.completion.chunk" if chat else "text_completion"
        events.append(orjson.dumps({**HEAD, "object": kind, "choices": [piece]}))
    if draw(st.booleans()):
        events.append(orjson.dumps({**HEAD, "choices": [], "usage": USAGE}))
    return chat, [*events, b"[DONE]"]


def read(chat: bool, events: list[bytes]) -> OpenAIReading:
    reading = OpenAIReading(chat=chat, keep=True, own_usage=False)
    for event in events:
        assert reading.event(event)
    assert reading.finished
    return reading


def body_of(completion: CachedCompletion | None) -> dict[str, Any]:
    assert completion is not None and completion.choices[0].wire is not None
    body: dict[str, Any] = json.loads(completion.choices[0].wire)
    return body


@given(streams())
def test_what_is_kept_of_a_stream_can_be_streamed_again(stream: tuple[bool, list[bytes]]) -> None:
    chat, events = stream
    completion = read(chat, events).completion(seconds=1.0)
    body = body_of(completion)
    assert body.items() >= HEAD.items()
    again = as_stream(completion.choices[0].wire, include_usage=True)  # type: ignore[union-attr, arg-type]
    repeated = read(chat, [data_of(event) for event in split(again)]).completion(seconds=1.0)
    assert {name: value for name, value in body_of(repeated).items() if value is not None} == body
    assert repeated.choices[0].text == completion.choices[0].text  # type: ignore[union-attr]


@given(streams())
def test_what_is_kept_of_a_body_is_that_body(stream: tuple[bool, list[bytes]]) -> None:
    chat, events = stream
    wire = read(chat, events).completion(seconds=1.0).choices[0].wire  # type: ignore[union-attr]
    reading = OpenAIReading(chat=chat, keep=True, own_usage=False)
    reading.body(wire)
    assert reading.completion(seconds=1.0).choices[0].wire == wire  # type: ignore[union-attr]


def test_pieces_are_put_together() -> None:
    def chunk(**choice: Any) -> bytes:
        return orjson.dumps({**HEAD, "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]})

    call = {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}
    other = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    events = [
        chunk(delta={"role": "assistant", "content": None}),
        chunk(delta={"reasoning_content": "hm"}),
        chunk(delta={"content": "a"}, logprobs={"content": [{"token": "a"}], "refusal": None}),
        chunk(delta={"content": "b"}, logprobs={"content": [{"token": "b"}], "refusal": None}),
        chunk(delta={"tool_calls": [call]}),
        chunk(delta={"tool_calls": [other]}),
        chunk(delta={"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]}),
        chunk(delta={}, finish_reason="tool_calls"),
        b"[DONE]",
    ]
    assert body_of(read(True, events).completion(seconds=1.0)) == {
        **HEAD,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ab",
                    "reasoning_content": "hm",
                    "tool_calls": [
                        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                    ],
                },
                "logprobs": {"content": [{"token": "a"}, {"token": "b"}]},
                "finish_reason": "tool_calls",
            }
        ],
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "index",
                    "delta",
                    "message",
                    "content",
                    "tool_calls",
                    "function",
                    "arguments",
                    "logprobs",
                    "text",
                    "id",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)
CHOICE = st.dictionaries(
    st.sampled_from(["index", "delta", "text", "finish_reason", "logprobs", "message"]), JSON, max_size=4
)
CHUNK = st.fixed_dictionaries(
    {}, optional={"choices": JSON | st.lists(JSON | CHOICE), "usage": JSON, "error": JSON, "id": JSON}
)


def deep(levels: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return {"choices": [{"index": 0, "delta": value}]}


@given(st.lists(CHUNK, max_size=5), st.booleans())
@example([deep(240)], True)
@example([{"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"index": 0, "text": {"b": 1}}]}], False)
def test_unknown_shapes_are_refused_or_not_kept(chunks: list[dict[str, Any]], chat: bool) -> None:
    reading = OpenAIReading(chat=chat, keep=True, own_usage=True)
    stop = {"choices": [{"index": 0, "finish_reason": "stop"}]}
    try:
        for chunk in (*chunks, stop):
            reading.event(orjson.dumps(chunk))
        reading.event(b"[DONE]")
    except UpstreamError:
        return
    completion = reading.completion(seconds=1.0)
    if completion is not None:
        assert completion.choices[0].wire is not None
        as_stream(completion.choices[0].wire, include_usage=True)


@given(st.binary(max_size=40) | CHUNK.map(orjson.dumps))
def test_no_body_is_too_odd(body: bytes) -> None:
    reading = OpenAIReading(chat=True, keep=True, own_usage=False)
    try:
        reading.body(body)
    except UpstreamError:
        return
    completion = reading.completion(seconds=1.0)
    if completion is not None:
        as_stream(completion.choices[0].wire, include_usage=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [90, 110, 260, 400, 900, 1000])
def test_levels_that_only_python_minds(levels: int) -> None:
    """orjson reads 1,024 levels, which is more than Python's own limit of calls, and writes 254."""
    nested = b'{"choices":[{"index":0,"delta":' + b'{"a":' * levels + b"1" + b"}" * levels + b"}]}"
    reading = OpenAIReading(chat=True, keep=True, own_usage=False)
    reading.event(nested)
    reading.event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
    reading.event(b"[DONE]")
    completion = reading.completion(seconds=1.0)
    assert (completion is not None) == (levels == 90)
    if completion is not None:
        as_stream(completion.choices[0].wire, include_usage=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", ["length", "content_filter", "abort"])
def test_what_did_not_end_by_itself_is_not_kept(reason: str) -> None:
    event = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": reason}]})
    assert read(True, [event, b"[DONE]"]).completion(seconds=1.0) is None


def test_too_much_is_not_kept() -> None:
    event = orjson.dumps({"choices": [{"index": 0, "delta": {"content": "x" * (MAX_KEPT_CHARACTERS // 3)}}]})
    end = orjson.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    assert read(True, [event] * 3 + [end, b"[DONE]"]).completion(seconds=1.0) is not None
    assert read(True, [event] * 4 + [end, b"[DONE]"]).completion(seconds=1.0) is None


def test_missing_figures_are_unknown() -> None:
    assert tokens_of({}) == TokenCounts()
    assert tokens_of({"prompt_tokens": 0}) == TokenCounts(prompt=0)
    assert tokens_of({"prompt_tokens": "many", "completion_tokens": -1}) == TokenCounts()
    assert tokens_of(USAGE) == TokenCounts(7, 2, 4)
    assert tokens_of([1]) == TokenCounts()  # type: ignore[arg-type]


@given(JSON)
def test_no_usage_is_too_odd(usage: Any) -> None:
    tokens_of(usage)
