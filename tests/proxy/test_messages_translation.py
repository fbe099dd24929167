"""Requests from Anthropic's shape to OpenAI's and back: nothing is lost, and what cannot be said is refused by its name."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequestError, UnsupportedParameterError
from penstock.proxy.anthropic.from_chat import from_chat
from penstock.proxy.anthropic.to_chat import check_headers, to_chat, to_counted_chat
from penstock.proxy.compat import FieldPolicy
from penstock.proxy.openai_types import ChatRequest, convert

HELLO = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
OBJECTS = st.dictionaries(TEXT, st.integers(-9, 9) | TEXT, max_size=2)


def chat(change: dict[str, Any], *, drop: bool = False, for_engine: bool = True) -> dict[str, Any]:
    policy = FieldPolicy("drop" if drop else "refuse")
    fields = {"model": "m", "max_tokens": 9, "messages": HELLO, **change}
    return to_chat(fields, policy, for_engine=for_engine).fields


def anthropic(change: dict[str, Any]) -> dict[str, Any]:
    return from_chat({"model": "m", "messages": HELLO, **change}, default_max_tokens=77)


def block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """OpenAI's, in the form that translating gives: turns alternate, and every call has its result."""
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXT)})
    calls = 0
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        while draw(st.booleans()):
            names = draw(st.lists(NAMES, min_size=1, max_size=2))
            ids = [f"call_{calls + place}" for place in range(len(names))]
            calls += len(names)
            made = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": name, "arguments": orjson.dumps(draw(OBJECTS)).decode()},
                }
                for call_id, name in zip(ids, names, strict=True)
            ]
            messages.append({"role": "assistant", "content": draw(st.none() | TEXT), "tool_calls": made})
            messages += [{"role": "tool", "tool_call_id": each, "content": draw(TEXT)} for each in ids]
        messages.append({"role": "assistant", "content": draw(TEXT)})
    messages.pop()
    return messages


TOOLS = st.lists(
    st.builds(
        lambda name, described, strict: {
            "type": "function",
            "function": {"name": name, "parameters": SCHEMA, **described, **strict},
        },
        NAMES,
        st.builds(lambda text: {"description": text}, TEXT) | st.just({}),
        st.builds(lambda strict: {"strict": strict}, st.booleans()) | st.just({}),
    ),
    min_size=1,
    max_size=2,
)
CHOICES = st.sampled_from(["auto", "required", "none"]) | st.builds(
    lambda name: {"type": "function", "function": {"name": name}}, NAMES
)
FORMAT = {"type": "json_schema", "json_schema": {"name": "output", "schema": SCHEMA}}
CHAT_FIELDS = st.fixed_dictionaries(
    {"model": TEXT, "messages": conversations(), "max_tokens": st.integers(1, 99)},
    optional={
        "stream": st.booleans(),
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(1, 9),
        "stop": st.lists(TEXT, max_size=2),
        "response_format": st.just(FORMAT),
    },
)


@given(CHAT_FIELDS, st.none() | st.tuples(TOOLS, CHOICES))
def test_there_and_back(fields: dict[str, Any], tools: Any) -> None:
    if tools is not None:
        fields |= {"tools": tools[0], "tool_choice": tools[1]}
    body = from_chat(fields, default_max_tokens=7)
    back = to_chat(body, FieldPolicy("refuse"), for_engine=False).fields
    assert back == fields
    assert from_chat(back, default_max_tokens=7) == body
    convert(back, ChatRequest)


def test_a_conversation_with_everything() -> None:
    translated = to_chat(
        {
            "model": "m",
            "max_tokens": 9,
            "system": [{**block("be"), "cache_control": {"type": "ephemeral"}}, block("brief")],
            "messages": [
                {"role": "user", "content": "weather?"},
                {"role": "user", "content": [block("in"), block("Lima")]},
                {"role": "system", "content": "today"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "x"},
                        block("wait"),
                        {
                            "type": "tool_use",
                            "id": "toolu_aBcDeFgH1",
                            "name": "weather",
                            "input": {"city": "Lima"},
                        },
                        {"type": "tool_use", "id": "other", "name": "now", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_aBcDeFgH1", "content": [block("sun")]},
                        {
                            "type": "tool_result",
                            "tool_use_id": "other",
                            "content": "no clock",
                            "is_error": True,
                        },
                        block("so?"),
                    ],
                },
            ],
        },
        FieldPolicy("refuse"),
        for_engine=True,
    )
    assert translated.fields["messages"] == [
        {"role": "system", "content": [block("be"), block("brief")]},
        {"role": "user", "content": [block("weather?"), block("in"), block("Lima")]},
        {"role": "system", "content": "today"},
        {
            "role": "assistant",
            "content": "wait",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "aBcDeFgH1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Lima"}'},
                },
                {"id": "other", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "aBcDeFgH1", "content": "sun"},
        {"role": "tool", "tool_call_id": "other", "content": "Error: no clock"},
        {"role": "user", "content": "so?"},
    ]
    places = ["system", "messages[0]", "messages[2]", "messages[3]"]
    assert translated.places == [*places, "messages[4].content[0]", "messages[4].content[1]", "messages[4]"]


def test_fields_that_ask_for_what_happens_anyway() -> None:
    neutral = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "mcp_servers": [],
        "speed": "standard",
        "output_config": {"effort": "high"},
        "tool_choice": {"type": "auto"},
        "tools": [],
    }
    assert chat(neutral, for_engine=False) == {
        "model": "m", "max_tokens": 9, "messages": HELLO, "tool_choice": "auto",
    }  # fmt: skip
    check_headers(
        {"anthropic-beta": "prompt-caching-2024-07-31, claude-code-20250219"}, FieldPolicy("refuse")
    )
    for version in ("2023-06-01", "2026-10-21"):
        check_headers({"anthropic-version": version}, FieldPolicy("refuse"))


def test_thinking_is_a_switch_of_the_template() -> None:
    for thinking, on in (
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 2000}, True),
    ):
        change = {"thinking": thinking, "max_tokens": 2000}
        assert chat(change)["chat_template_kwargs"] == {"enable_thinking": on}
        assert "chat_template_kwargs" not in chat(change, for_engine=False)
    policy = FieldPolicy("refuse")
    counted = to_counted_chat({"model": "m", "messages": HELLO, "thinking": {"type": "disabled"}}, policy)
    assert counted.fields["chat_template_kwargs"] == {"enable_thinking": False}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": list(blocks)}, *HELLO]}


USE = {"type": "tool_use", "id": "x", "name": "n", "input": {}}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
RESULT = {"type": "tool_result", "tool_use_id": "x"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (user(IMAGE), "messages[0].content[0].type"),
        (user(block("a"), {"type": "document", "source": {}}), "messages[0].content[1].type"),
        (user({**RESULT, "content": [IMAGE]}), "messages[0].content[0].content[0].type"),
        (user({**RESULT, "content": [{"type": "search_result"}]}), "messages[0].content[0].content[0].type"),
        (assistant({"type": "server_tool_use"}), "messages[0].content[0].type"),
        (assistant({**USE, "caller": {"type": "code_execution"}}), "messages[0].content[0].caller.type"),
        (assistant(USE, block("a")), "messages[0].content[1]"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "So"}]}, "messages[1]"),
    ],
)
def test_contents_are_never_dropped(change: dict[str, Any], param: str) -> None:
    for drop in (False, True):
        with pytest.raises(UnsupportedParameterError) as refused:
            chat(change, drop=drop)
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("change", "dropped"),
    [
        (assistant({**block("a"), "citations": [{}]}), "messages[0].content[0].citations"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"context_management": {"edits": [{"type": "x"}]}}, "context_management"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "batch"}, "service_tier"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8}}, "thinking.budget_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "n", "input_schema": SCHEMA, "defer_loading": True}]}, "tools[0].defer_loading"),
        (
            {"tools": [{"name": "n", "input_schema": SCHEMA, "input_examples": [{}]}]},
            "tools[0].input_examples",
        ),
        (
            {"tools": [{"name": "n", "input_schema": SCHEMA, "allowed_callers": []}]},
            "tools[0].allowed_callers",
        ),
        (assistant({"type": "redacted_thinking", "data": "x"}), "messages[0].content[0].type"),
        ({"max_tokens_to_sample": 3}, "max_tokens_to_sample"),
    ],
)
def test_what_is_refused_by_name_or_dropped_and_named(change: dict[str, Any], dropped: str) -> None:
    with pytest.raises(UnsupportedParameterError, match="--unsupported drop") as refused:
        chat(change)
    assert refused.value.param == dropped
    policy = FieldPolicy("drop")
    to_chat({"model": "m", "max_tokens": 9, "messages": HELLO, **change}, policy, for_engine=True)
    assert policy.dropped == [dropped]


def test_betas_are_refused_by_name_or_dropped_and_named() -> None:
    headers = {"anthropic-beta": "prompt-caching-2024-07-31,context-1m-2025-08-07"}
    with pytest.raises(UnsupportedParameterError, match="'context-1m-2025-08-07'"):
        check_headers(headers, FieldPolicy("refuse"))
    policy = FieldPolicy("drop")
    check_headers(headers, policy)
    assert policy.dropped == ["anthropic-beta:context-1m-2025-08-07"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        (user(), "messages[0].content"),
        (user(block("a"), RESULT), "messages[0].content[1]"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"tools": [{"name": "n"}]}, "tools[0].input_schema"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"system": [{"type": "text"}]}, "system[0]"),
    ],
)
def test_mistakes_are_mistakes_also_where_fields_are_dropped(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        chat(change, drop=True)
    assert refused.value.param == param


def test_errors_about_the_chat_request_are_told_in_anthropics_names() -> None:
    fields = {"model": "m", "max_tokens": 9, "system": "s", "messages": HELLO}
    translated = to_chat(fields, FieldPolicy("refuse"), for_engine=True)
    with pytest.raises(UnsupportedParameterError) as told, translated.own_words():
        raise UnsupportedParameterError(
            "messages[1].reasoning_content and tools[3].function.parameters are not so.",
            param="tools[3].function.parameters",
        )
    assert told.value.message == "messages[0].thinking and tools[3].input_schema are not so."
    assert told.value.param == "tools[3].input_schema"


def test_results_of_one_turn_stand_together() -> None:
    calls = [{"id": each, "type": "function", "function": {"name": "n", "arguments": ""}} for each in "ab"]
    messages = [
        {"role": "developer", "content": "first"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "1", "name": "n"},
        {"role": "tool", "tool_call_id": "b", "content": [block("2"), block("3")]},
        {"role": "user", "content": "go on"},
        {"role": "system", "content": "late"},
    ]
    body = anthropic({"messages": messages})
    assert body == {
        "model": "m",
        "max_tokens": 77,
        "system": [block("first")],
        "messages": [
            {"role": "user", "content": [block("x")]},
            {
                "role": "assistant",
                "content": [{**USE, "id": "toolu_a"}, {**USE, "id": "toolu_b"}],
            },
            {
                "role": "user",
                "content": [
                    {**RESULT, "tool_use_id": "toolu_a", "content": [block("1")]},
                    {**RESULT, "tool_use_id": "toolu_b", "content": [block("2"), block("3")]},
                    block("go on"),
                ],
            },
            {"role": "system", "content": [block("late")]},
        ],
    }


def test_images_go_both_ways() -> None:
    urls = ["data:image/png;base64,aGk=", "https://x/y.png"]
    parts = [block("look"), *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    body = anthropic({"messages": [{"role": "user", "content": parts}]})
    assert [each["type"] for each in body["messages"][0]["content"]] == ["text", "image", "image"]
    assert chat(body, for_engine=False)["messages"] == [{"role": "user", "content": parts}]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"seed": 1}, "seed"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"audio": {}}, "audio"),
        ({"min_p": 0.1}, "min_p"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"chat_template_kwargs": {}}, "chat_template_kwargs"),
        ({"temperature": 1.5}, "temperature"),
        ({"tools": [{"type": "custom"}]}, "tools[0]"),
        (
            {"tool_choice": "sometimes", "tools": [{"type": "function", "function": {"name": "n"}}]},
            "tool_choice",
        ),
        ({"messages": [*HELLO, {"role": "assistant", "content": "So"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "reasoning_content": "y"}, *HELLO]},
            "messages[0].reasoning_content",
        ),
        ({"messages": [{"role": "assistant"}, *HELLO]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "wizard"}]}, "messages[0].role"),
    ],
)
def test_what_anthropics_api_has_no_word_for(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        anthropic(change)
    assert refused.value.param == param


def test_values_that_ask_for_nothing_go_to_anthropic_too() -> None:
    neutral = {
        "n": 1,
        "logprobs": False,
        "seed": None,
        "stream_options": {"include_usage": True},
        "penstock": {},
    }
    assert anthropic({**neutral, "user": "u", "max_completion_tokens": 5, "stop": "END"}) == {
        "model": "m",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": [block("hi")]}],
        "metadata": {"user_id": "u"},
        "stop_sequences": ["END"],
    }
