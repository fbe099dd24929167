"""A kept answer as a stream."""

from typing import Any

import orjson
import pytest

from penstock.proxy.upstreams.events import data_of, split
from penstock.proxy.upstreams.replay import as_stream

HEAD = {"id": "c1", "created": 1, "model": "m"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 4}


def replayed(
    choices: list[dict[str, Any]], *, include_usage: bool, kind: str = "chat.completion"
) -> list[Any]:
    body = orjson.dumps({**HEAD, "object": kind, "choices": choices, "usage": USAGE})
    *events, done = [data_of(event) for event in split(as_stream(body, include_usage=include_usage))]
    assert done == b"[DONE]"
    return [orjson.loads(event) for event in events]


def test_a_chat_answer() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "hi", "tool_calls": [call]}
    first, last = replayed(
        [{"index": 0, "message": message, "finish_reason": "tool_calls"}], include_usage=False
    )
    assert first["object"] == last["object"] == "chat.completion.chunk"
    assert first["choices"] == [
        {"index": 0, "finish_reason": None, "delta": {**message, "tool_calls": [{**call, "index": 0}]}}
    ]
    assert last["choices"] == [{"index": 0, "finish_reason": "tool_calls", "logprobs": None, "delta": {}}]
    assert "usage" not in first and first.items() >= HEAD.items()


def test_a_completion() -> None:
    first, last = replayed(
        [{"index": 0, "text": "hi", "finish_reason": "stop"}], include_usage=False, kind="text_completion"
    )
    assert (first["choices"][0]["text"], last["choices"][0]["text"]) == ("hi", "")
    assert first["object"] == "text_completion"


@pytest.mark.parametrize("n", [1, 3])
def test_usage_is_told_once_and_last(n: int) -> None:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        for index in range(n)
    ]
    *events, last = replayed(choices, include_usage=True)
    assert len(events) == 2 * n and all(event["usage"] is None for event in events)
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_no_event_is_broken_by_what_unicode_calls_a_line_end() -> None:
    message = {"role": "assistant", "content": "a\u2028b\x85c\n"}
    body = orjson.dumps({**HEAD, "object": "chat.completion", "choices": [{"index": 0, "message": message}]})
    stream = as_stream(body, include_usage=False)
    assert all(line.startswith("data: ") for line in stream.decode().splitlines() if line)
    assert orjson.loads(data_of(split(stream)[0]))["choices"][0]["delta"] == message
