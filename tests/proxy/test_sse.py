"""Streams, byte for byte.

The golden files are what a client reads; a change to them is a change of the wire format.
"""

from pathlib import Path

import orjson
import pytest

from penstock.proxy.sse import StreamFormat, chat_format, completion_format, event
from penstock.proxy.usage import Usage
from penstock.scheduler.outputs import Chunk

GOLDEN = Path(__file__).parent / "golden"
HEAD: dict[str, object] = {"id": "x-1", "created": 1700000000, "model": "m", "system_fingerprint": "fp_0"}
USAGE = Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2)
BATCHES = [
    [Chunk(0, "Hé\n", [1])],
    [Chunk(0, "", [2])],
    [Chunk(1, '"q"\u2028', [3]), Chunk(0, "l", [4], finish_reason="length")],
    [Chunk(1, "", [5], finish_reason="stop")],
]


def logprobs(chunk: Chunk) -> bytes:
    return orjson.dumps({"ids": chunk.token_ids})


def written(form: StreamFormat) -> bytes:
    return b"".join(form.chunks(batch) for batch in BATCHES) + form.end(USAGE)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("chat", chat_format(HEAD, logprobs=None, include_usage=False)),
        ("chat_usage", chat_format(HEAD, logprobs=None, include_usage=True)),
        ("chat_logprobs", chat_format(HEAD, logprobs=logprobs, include_usage=False)),
        ("completion", completion_format(HEAD, logprobs=None, include_usage=False)),
        ("completion_usage", completion_format(HEAD, logprobs=logprobs, include_usage=True)),
    ],
)
def test_golden_streams(name: str, form: StreamFormat) -> None:
    assert written(form) == (GOLDEN / f"{name}.sse").read_bytes()


@pytest.mark.parametrize("make", [chat_format, completion_format])
@pytest.mark.parametrize("include_usage", [False, True])
def test_every_event_is_json_and_the_last_is_done(make: object, include_usage: bool) -> None:
    form = make(HEAD, logprobs=logprobs, include_usage=include_usage)  # type: ignore[operator]  # either maker
    events = written(form).decode().split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    for line in events:
        content = orjson.loads(line.removeprefix("data: "))
        assert ("usage" in content) == include_usage
        assert content["id"] == "x-1"


def test_an_unfinished_character_sends_nothing() -> None:
    form = chat_format(HEAD, logprobs=None, include_usage=False)
    form.chunks([Chunk(0, "a", [1])])
    assert form.chunks([Chunk(0, "", [2])]) == b""


def test_an_event_is_one_line() -> None:
    assert event(b"{}") == b"data: {}\n\n"


def test_no_reader_finds_a_line_end_inside_an_event() -> None:
    text = "".join(map(chr, range(0x20))) + "\x7f\x85\u2028\u2029"
    form = chat_format(HEAD, logprobs=None, include_usage=False)
    lines = form.chunks([Chunk(0, text, [1])]).decode().splitlines()
    assert len(lines) == 4, "two events, each with its empty line"
    assert orjson.loads(lines[2].removeprefix("data: "))["choices"][0]["delta"]["content"] == text
