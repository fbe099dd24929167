"""Anthropic's stream, byte for byte, and read back: however an answer is cut into pieces, its readers find the same."""

from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import EngineDeadError, PenstockError
from penstock.proxy.answer import Layout, Part
from penstock.proxy.answer_writer import Finish, Reason, WrittenAnswer
from penstock.proxy.anthropic import body
from penstock.proxy.anthropic.body import Head, message_body
from penstock.proxy.anthropic.reader import BrokenAnswerError, MessageReader
from penstock.proxy.anthropic.writer import MessageWriter
from penstock.proxy.usage import Usage
from penstock.scheduler.outputs import Chunk

GOLDEN = Path(__file__).parent / "golden"
HEAD = Head("msg_1", "m", max_tokens=50)
USAGE = Usage(prompt_tokens=9, completion_tokens=7, cached_tokens=4)
PIECES = [
    [Part("reasoning", "Hm")],
    [Part("reasoning", ', "so"\u2028')],
    [Part("content", "Hé\n"), Part("content", "l")],
    [Part("name", "weather", 0), Part("arguments", '{"city":', 0)],
    [Part("arguments", '"Lima"}', 0), Part("name", "now", 1), Part("arguments", "{}", 1)],
]


@pytest.fixture
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "new_call_id", lambda: "aBcDeFgH1")


def written(pieces: list[list[Part]], finish: Finish, head: Head = HEAD) -> bytes:
    writer = MessageWriter(head, request_id="r-1", usage=Usage(9, 1, 4))
    return writer.begin() + b"".join(map(writer.parts, pieces)) + writer.end(finish, USAGE)


def events(stream: bytes) -> list[dict[str, Any]]:
    found = []
    blocks = stream.decode().split("\n\n")
    assert blocks.pop() == ""
    for block in blocks:
        name, data = block.splitlines()
        event = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


@pytest.mark.usefixtures("same_ids")
def test_golden_stream() -> None:
    assert written(PIECES, Finish("tool_calls")) == (GOLDEN / "messages.sse").read_bytes()


@pytest.mark.usefixtures("same_ids")
def test_golden_failure() -> None:
    writer = MessageWriter(HEAD, request_id="r-1")
    stream = writer.begin() + writer.parts([Part("content", "Hé")])
    stream += writer.failed(EngineDeadError("The engine is gone; send the request again."))
    assert stream == (GOLDEN / "messages_failed.sse").read_bytes()


def test_the_engines_chunks_are_written_as_they_come() -> None:
    form = WrittenAnswer(Layout(), MessageWriter(HEAD, request_id="r-1"))
    stream = b"".join(
        form.chunks([chunk]) for chunk in (Chunk(0, "", [1]), Chunk(0, "a", [2]), Chunk(0, "", [3]))
    )
    stream += form.chunks([Chunk(0, "b", [4], finish_reason="stop", stop_reason="END")]) + form.end(USAGE)
    found = events(stream)
    assert [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"] == ["a", "b"]
    assert found[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    assert [event["type"] for event in found].count("message_start") == 1


def test_no_reader_finds_a_line_end_inside_an_event() -> None:
    text = "".join(map(chr, range(0x20))) + "\x7f\x85\u2028\u2029"
    (delta,) = [
        event for event in events(written([[Part("content", text)]], Finish("stop"))) if "index" in event
    ][1:2]
    assert delta["delta"]["text"] == text


@pytest.mark.parametrize(
    ("finish", "spent", "told"),
    [
        (Finish("stop"), 7, "end_turn"),
        (Finish("length"), 50, "max_tokens"),
        (Finish("length"), 7, "model_context_window_exceeded"),
        (Finish("tool_calls"), 7, "tool_use"),
        (Finish("content_filter"), 7, "refusal"),
        (Finish("stop", "END"), 7, "stop_sequence"),
    ],
)
def test_reasons(finish: Finish, spent: int, told: str) -> None:
    found = message_body(HEAD, [Part("content", "a")], finish, Usage(9, spent, 4))
    assert (found["stop_reason"], found["stop_sequence"]) == (told, finish.stop_string)
    reader = MessageReader()
    reader.whole(found)
    assert reader.finish == finish


def test_hidden_thoughts_keep_their_block_and_the_connection() -> None:
    head = Head("msg_1", "m", shows_thoughts=False)
    found = events(written(PIECES, Finish("tool_calls"), head))
    assert "thinking_delta" not in str(found) and "signature_delta" in str(found)
    assert [event["type"] for event in found].count("ping") == 3, "one after the start, one a thought"
    content: Any = message_body(
        head, [part for piece in PIECES for part in piece], Finish("tool_calls"), USAGE
    )["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "tool_use"]
    assert content[0]["thinking"] == ""


def test_a_call_that_was_cut_shows_no_part_of_its_arguments() -> None:
    parts = [Part("name", "weather"), Part("arguments", '{"city":"Li')]
    content: Any = message_body(HEAD, parts, Finish("length"), USAGE)["content"]
    assert content[0]["input"] == {}
    with pytest.raises(PenstockError, match="'weather'"):
        message_body(HEAD, parts, Finish("tool_calls"), USAGE)


# Answers in the order that models write them: thoughts, text, calls.
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
ARGUMENTS = st.dictionaries(TEXT, st.integers(-9, 9) | TEXT | st.none(), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> list[Part]:
    parts = [Part("reasoning", text) for text in draw(st.lists(TEXT, max_size=1))]
    parts += [Part("content", text) for text in draw(st.lists(TEXT, max_size=1))]
    for call, (name, arguments) in enumerate(draw(st.lists(st.tuples(TEXT, ARGUMENTS), max_size=3))):
        parts += [Part("name", name, call), Part("arguments", orjson.dumps(arguments).decode(), call)]
    return parts


@st.composite
def in_pieces(draw: st.DrawFn, parts: list[Part]) -> list[list[Part]]:
    pieces: list[list[Part]] = [[]]
    for part in parts:
        cut = draw(st.integers(0, len(part.text)))
        texts = [part.text] if part.kind == "name" else [part.text[:cut], part.text[cut:]]
        for text in filter(None, texts):
            pieces[-1].append(Part(part.kind, text, part.call))
            if draw(st.booleans()):
                pieces.append([])
    return pieces


def joined(parts: list[Part]) -> list[Part]:
    whole: list[Part] = []
    for part in parts:
        last = whole[-1] if whole else None
        if last is not None and (last.kind, last.call) == (part.kind, part.call) and part.kind != "name":
            whole[-1] = Part(part.kind, last.text + part.text, part.call)
        else:
            whole.append(part)
    return whole


FINISHES = st.builds(Finish, st.sampled_from(get_args(Reason))) | st.builds(Finish, st.just("stop"), TEXT)


@given(st.data(), answers(), FINISHES)
def test_what_is_written_is_read_again(data: st.DataObject, parts: list[Part], finish: Finish) -> None:
    reader = MessageReader()
    found: list[Part] = []
    for event in events(written(data.draw(in_pieces(parts)), finish)):
        assert not reader.finished
        found += reader.read(event)
    assert joined(found) == parts
    assert (reader.finish, reader.usage, reader.finished) == (finish, USAGE, True)
    reader = MessageReader()
    assert reader.whole(message_body(HEAD, parts, finish, USAGE)) == parts
    assert (reader.finish, reader.usage, reader.finished) == (finish, USAGE, True)


def test_streams_of_anthropics_own() -> None:
    """With what this server does not write: citations, redacted thoughts, unknown events, arguments that stay away."""
    reader = MessageReader()
    parts: list[Part] = []
    for event in (
        {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "redacted_thinking", "data": "x"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "weather_report"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "weather_delta", "rain": 3}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "a"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2,
         "content_block": {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ""}},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 12, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}},
    ):  # fmt: skip
        parts += reader.read(event)
    assert parts == [Part("content", "a"), Part("name", "now"), Part("arguments", "{}")]
    assert reader.usage == Usage(prompt_tokens=10, completion_tokens=12, cached_tokens=3)
    assert not reader.finished, "a stream without its last event has broken off"
    reader.read({"type": "message_stop"})
    assert reader.finished


@pytest.mark.parametrize(
    ("event", "says", "kind"),
    [
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
            "busy",
            "overloaded_error",
        ),
        (
            {"type": "content_block_start", "content_block": {"type": "server_tool_use"}},
            "server_tool_use",
            None,
        ),
        ({"type": "content_block_delta", "delta": {"type": "text_delta"}}, "no text 'text'", None),
        ({"type": "content_block_delta", "delta": 3}, "no object 'delta'", None),
        (
            {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}},
            "outside",
            None,
        ),
        ({"type": "message_delta", "delta": {"stop_reason": "pause_turn"}}, "pause_turn", None),
    ],
)
def test_what_is_no_answer(event: dict[str, Any], says: str, kind: str | None) -> None:
    with pytest.raises(BrokenAnswerError, match=says) as broken:
        MessageReader().read(event)
    assert broken.value.kind == kind


def test_usage_that_was_not_told_is_unknown() -> None:
    whole = message_body(HEAD, [], Finish("stop"), USAGE)
    del whole["usage"]
    reader = MessageReader()
    reader.whole(whole)
    assert reader.usage is None
    whole["stop_reason"] = None
    with pytest.raises(BrokenAnswerError, match="no stop_reason"):
        MessageReader().whole(whole)
