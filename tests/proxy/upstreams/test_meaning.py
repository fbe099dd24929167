"""What is compared of a request, what must be equal around it, and which answers may stand for another question's."""

from typing import Any

import msgspec
import orjson
import pytest

from penstock.cache import CachedChoice, CachedCompletion, Question
from penstock.proxy.cache_scope import MAX_QUESTION_CHARACTERS
from penstock.proxy.upstreams.meaning import is_plain, is_read_by_machines, question_of, tells_logprobs

NAMES = {"tenant": "acme", "namespace": "", "model": "up/m", "fingerprint": "http://up chat"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def chat(content: Any, *earlier: tuple[str, str], **fields: Any) -> dict[str, Any]:
    turns = [{"role": role, "content": text} for role, text in earlier]
    return {"messages": [*turns, {"role": "user", "content": content}], **fields}


def asked(request: dict[str, Any], embedder: str = "e", **names: str) -> Question:
    question = question_of({**NAMES, **names}, request, embedder)
    assert question is not None
    return question


def test_only_the_last_turn_is_compared() -> None:
    earlier = (("system", "be brief"), ("user", "hi"), ("assistant", "hello"))
    one, other = asked(chat("how do I list files?", *earlier)), asked(chat("how to list files", *earlier))
    assert (one.text, other.text) == ("how do I list files?", "how to list files")
    assert one.partition == other.partition and one.family == other.family
    assert one.before == "system: be brief\nuser: hi\nassistant: hello\n"


@pytest.mark.parametrize(
    "other",
    [
        chat("x", ("system", "be long")),
        chat("x"),
        chat("x", ("system", "be brief"), temperature=0.5),
        chat("x\n", ("system", "be brief")),
        chat([{"type": "text", "text": "x"}], ("system", "be brief")),
        chat("x", ("system", "be brief"), tools=[{"type": "function"}]),
        {**chat("x"), "system": "be brief"},
        {"prompt": "x"},
    ],
    ids=str,
)
def test_all_around_it_must_be_equal(other: dict[str, Any]) -> None:
    assert asked(other).partition != asked(chat("x", ("system", "be brief"))).partition


def test_whose_it_is_must_be_equal() -> None:
    partitions = {
        asked(chat("x"), **change).partition
        for change in ({}, *({name: "other"} for name in NAMES), {"embedder": "other"})
    }
    assert len(partitions) == len(NAMES) + 2
    assert asked(chat("x"), namespace="other").family == asked(chat("x")).family


def test_pictures_beside_it_must_be_equal() -> None:
    one, same = (asked(chat([{"type": "text", "text": text}, PICTURE])) for text in ("what is it?", "say it"))
    other = asked(chat([{"type": "text", "text": "what is it?"}, {**PICTURE, "detail": "high"}]))
    assert one.partition == same.partition != other.partition


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"messages": []},
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "tool", "content": "42"}]},
        chat(None),
        chat("  "),
        chat([]),
        chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        chat([{"type": "text", "text": 1}]),
        chat("x" * (MAX_QUESTION_CHARACTERS + 1)),
        {"prompt": ["a", "b"]},
        {"prompt": "x", "echo": True},
    ],
    ids=lambda request: str(request)[:60],
)
def test_what_is_no_single_text_of_the_users_is_not_compared(request_: dict[str, Any]) -> None:
    assert question_of(NAMES, request_, "e") is None


def test_fields_that_forbid_or_sharpen_comparison() -> None:
    assert [tells_logprobs({"logprobs": given}) for given in (None, False, 0, True, 5)] == [False] * 2 + [
        True
    ] * 3
    assert is_read_by_machines({"response_format": {"type": "json_object"}})
    assert not is_read_by_machines({"response_format": None, "tools": [{}]})


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat_answer(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("wire", "plain"),
    [
        (chat_answer(content="hi", tool_calls=None), True),
        (chat_answer(content="hi", tool_calls=[], parts=[]), True),
        (chat_answer(content="hi", tool_calls=[CALL]), False),
        (chat_answer(content="hi", function_call=CALL["function"]), False),
        ({"choices": [{"index": 0, "text": "hi"}], "parts": 5}, True),
        ({"type": "message", "content": [{"type": "text", "text": "hi"}]}, True),
        ({"type": "message", "content": [{"type": "text", "text": "hi"}, {"type": "tool_use"}]}, False),
        ({"parts": [["reasoning", "so", 0], ["content", "hi", 0]]}, True),
        ({"parts": [["content", "hi", 0], ["name", "f", 0]]}, False),
    ],
    ids=str,
)
def test_an_answer_that_calls_tools_is_not_plain(wire: dict[str, Any], plain: bool) -> None:
    choice = CachedChoice("hi", [], "stop", None, None, orjson.dumps(wire))
    assert is_plain(CachedCompletion([choice], 1, 0.1)) == plain
    for other in ({"finish_reason": "tool_calls"}, {"text": " "}, {"wire": None}):
        assert not is_plain(CachedCompletion([msgspec.structs.replace(choice, **other)], 1, 0.1))
    assert not is_plain(CachedCompletion([choice, choice], 1, 0.1))
