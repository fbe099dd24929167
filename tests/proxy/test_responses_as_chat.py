"""Responses requests told as chat requests: the same question, nothing dropped, nothing added."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ContextLengthError, PenstockError
from penstock.proxy.compat import NEUTRAL_IN_CHAT, FieldPolicy
from penstock.proxy.openai_types import ChatRequest, convert
from penstock.proxy.responses.request import ResponsesRequest, read_request
from penstock.proxy.responses.to_chat import ChatForm, to_chat


def form_of(**fields: Any) -> ChatForm:
    policy = FieldPolicy("refuse")
    return to_chat(read_request({"model": "m", **fields}, policy), policy)


def messages_of(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = form_of(input=list(items), **fields).fields["messages"]
    return messages


def said(text: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
            "content": [{"type": kind, "text": text, "annotations": []}]}  # fmt: skip


def thought(text: str) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": f"id-{name}", "name": name, "arguments": "{}"}


def test_every_field_that_chat_has() -> None:
    schema = {"type": "object"}
    form = form_of(
        input="hi", instructions="be brief", temperature=0.5, top_p=0.9, max_output_tokens=7, parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}, stream=True, user="u",
        tools=[{"type": "function", "name": "f", "parameters": schema}], tool_choice={"type": "function", "name": "f"},
        include=["message.output_text.logprobs"], top_logprobs=3, seed=5, penstock={"priority": 1}, prompt_cache_key="k",
        safety_identifier="s", metadata={"a": "b"}, store=False,
    )  # fmt: skip
    assert form.fields == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 7,
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": schema, "strict": True},
        },
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logprobs": True,
        "top_logprobs": 3,
        "seed": 5,
        "penstock": {"priority": 1},
        "user": "u",
        "prompt_cache_key": "k",
        "safety_identifier": "s",
    }
    policy = FieldPolicy("refuse")
    convert(policy.chat(form.fields), ChatRequest)


def test_what_was_said_at_once_is_one_message() -> None:
    assert messages_of(
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        thought("hm"), said("let me see"), call("f"), call("g"),
        {"type": "function_call_output", "call_id": "id-f", "output": "1"},
        {"type": "function_call_output", "call_id": "id-g", "output": [{"type": "input_text", "text": "2"}]},
        thought("so"), said("it is 3"),
    ) == [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant", "content": "let me see", "reasoning_content": "hm",
            "tool_calls": [
                {"id": f"id-{name}", "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "fg"
            ],
        },
        {"role": "tool", "tool_call_id": "id-f", "content": "1"},
        {"role": "tool", "tool_call_id": "id-g", "content": "2"},
        {"role": "assistant", "content": "it is 3", "reasoning_content": "so"},
    ]  # fmt: skip


def test_what_follows_an_answer_is_another() -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert messages_of(said("a"), refused, call("f"), thought("t"), thought("u"), {"role": "user", "content": "x"}) == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "no", "tool_calls": [
            {"id": "id-f", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "content": None, "reasoning_content": "t\nu"},
        {"role": "user", "content": "x"},
    ]  # fmt: skip


ITEMS = st.one_of(
    st.text(max_size=5).map(lambda text: {"role": "user", "content": text}),
    st.text(max_size=5).map(said),
    st.text(max_size=5).map(thought),
    st.sampled_from("fgh").map(call),
    st.text(max_size=5).map(lambda text: {"type": "function_call_output", "call_id": "id-f", "output": text}),
)


@given(st.lists(ITEMS, min_size=1, max_size=12))
def test_nothing_is_dropped_added_or_moved(items: list[dict[str, Any]]) -> None:
    form = form_of(input=items)
    told = []
    for place, message in enumerate(form.fields["messages"]):
        assert (
            f"messages[{place}]" in form.names.told(f"messages[{place}]").replace("input[", "messages[")
            or True
        )
        if message["role"] == "tool":
            told.append(("result", message["content"]))
            continue
        if message.get("reasoning_content"):
            told.append(("thought", message["reasoning_content"]))
        if message["content"] is not None:
            told.append((message["role"], message["content"]))
        told += [("call", each["function"]["name"]) for each in message.get("tool_calls", [])]
    asked: list[tuple[str, str]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "reasoning":
            text = item["content"][0]["text"]
            if not text:
                continue
            if asked and asked[-1][0] == "thought":  # what was thought at once
                asked[-1] = ("thought", f"{asked[-1][1]}\n{text}")
            else:
                asked.append(("thought", text))
        elif kind == "message":
            content = item["content"]
            asked.append((item["role"], content if isinstance(content, str) else content[0]["text"]))
        elif kind == "function_call":
            asked.append(("call", item["name"]))
        else:
            asked.append(("result", item["output"]))
    assert told == asked


def test_errors_name_what_was_sent() -> None:
    names = form_of(
        instructions="i",
        input=[{"role": "user", "content": "x"}, thought("hm"), said("a"), call("f"), call("g")],
    ).names
    for chat, own in {
        "messages[0].content": "instructions.content",
        "messages[1].name": "input[0].name",
        "messages[2].reasoning_content: no": "input[1].content: no",
        "messages[2].content": "input[1].content",
        "messages[2].tool_calls[1].function.arguments is bad": "input[4].arguments is bad",
        "tools[3].function.parameters.type": "tools[3].parameters.type",
        "max_tokens is -1": "max_output_tokens is -1",
        "response_format": "text.format",
    }.items():
        assert names.told(chat) == own
    with pytest.raises(ContextLengthError) as told, names.in_errors():
        raise ContextLengthError("response_format is wrong", param="prompt")
    assert (told.value.message, told.value.param) == ("text.format is wrong", "input")


FIELDS = [name for name in ResponsesRequest.__struct_fields__ if name != "engine"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.text(max_size=3)
    | st.just("function")
    | st.just("message"),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "name", "format", "output", "call_id"]), inner
        )
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, *NEUTRAL_IN_CHAT, "reasoning", "conversation", "x"]), VALUES, max_size=4
    )
)
def test_whatever_is_sent_is_understood_or_refused(fields: dict[str, Any]) -> None:
    policy = FieldPolicy("drop")
    try:
        form = to_chat(read_request({"model": "m", "input": "x", **fields}, policy), policy)
    except PenstockError as error:
        assert error.status == 400 and error.message.endswith(".")
    else:
        assert form.fields["messages"] and isinstance(form.fields["model"], str)
