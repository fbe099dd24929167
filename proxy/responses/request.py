"""A Responses request as a typed value: which fields it may have, and which of them ask for something.

The rule is compat.py's. What the input says is read in conversation.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from ...errors import InvalidRequestError, UnsupportedParameterError
from ..compat import FieldPolicy, one_of
from ..openai_types import convert

LOGPROBS = "message.output_text.logprobs"

# The engine's own parameters, which chat requests have too, as they are.
ENGINE_FIELDS = (
    "chat_template_kwargs",
    "frequency_penalty",
    "guided_grammar",
    "guided_regex",
    "ignore_eos",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "top_k",
)
NEUTRAL_IN_RESPONSES: dict[str, Callable[[object], bool]] = {
    "background": one_of(False),
    "context_management": one_of([]),
    "prompt_cache_options": one_of({"mode": "implicit"}),
    "prompt_cache_retention": one_of("in_memory"),
    "service_tier": one_of("auto", "default"),
    "store": one_of(False),
    "stream_options": one_of({}, {"include_obfuscation": False}),
    "truncation": one_of("disabled"),
    # Known to the API, never to this server.
    "access_programs": one_of(),
    "background_options": one_of(),
    "image": one_of(),
    "moderation": one_of(),
}
_NEUTRAL_REASONING = {
    "context": one_of("auto"),
    "effort": one_of(),
    "generate_summary": one_of(),
    "mode": one_of("standard"),
    "summary": one_of(),
}
_TOOL_FIELDS = ("type", "name", "description", "parameters", "strict")
_NEUTRAL_TOOL = {
    "allowed_callers": one_of(["direct"]),
    "async": one_of(False),
    "defer_loading": one_of(False),
    "output_schema": one_of(),
}
# Of tools that are never called, so that there is nothing to include.
_NEUTRAL_INCLUDES = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)
# What the model would be asked, kept elsewhere: to leave it out is to ask something else.
_ELSEWHERE = ("conversation", "previous_response_id", "prompt")


class Format(msgspec.Struct, frozen=True):
    """What the text obeys."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct, frozen=True):
    format: Format | None = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that are honoured, and those that are told back."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None  # of hosted tools, which there are none of
    text: Text | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    stream: bool | None = None
    penstock: dict[str, Any] | None = None
    engine: dict[str, Any] = {}
    """The ENGINE_FIELDS that were given."""

    @property
    def format(self) -> Format:
        return (self.text and self.text.format) or Format()

    @property
    def logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())


def read_request(fields: Mapping[str, Any], policy: FieldPolicy) -> ResponsesRequest:
    """The request in a decoded body. Raises InvalidRequestError or UnsupportedParameterError naming the field."""
    for name in _ELSEWHERE:
        if fields.get(name) is not None:
            raise UnsupportedParameterError(
                f"{name} is given, but nothing is stored here; send the whole conversation as input.",
                param=name,
            )
    known = [name for name in ResponsesRequest.__struct_fields__ if name != "engine"]
    given = {name: value for name, value in fields.items() if name not in _ELSEWHERE}
    reasoning = given.pop("reasoning", None)
    if isinstance(reasoning, dict):
        policy.honoured(reasoning, (), _NEUTRAL_REASONING, where="reasoning.")
    elif reasoning is not None:
        raise InvalidRequestError("reasoning must be an object.", param="reasoning")
    given = policy.honoured(given, [*known, *ENGINE_FIELDS], NEUTRAL_IN_RESPONSES)
    text = given.get("text")
    if isinstance(text, dict):
        given["text"] = _text(text, policy)
    tools = given.get("tools")
    if isinstance(tools, list):
        given["tools"] = [
            tool for place, each in enumerate(tools) if (tool := _tool(place, each, policy)) is not None
        ]
    include = given.get("include")
    if isinstance(include, list):
        given["include"] = [name for name in include if _includes(name, policy)]
    engine = {name: given.pop(name) for name in ENGINE_FIELDS if name in given}
    asked = convert({**given, "engine": engine}, ResponsesRequest)
    _check(asked)
    return asked


def _text(text: dict[str, Any], policy: FieldPolicy) -> dict[str, Any]:
    honoured = policy.honoured(text, Text.__struct_fields__, {"verbosity": one_of("medium")}, where="text.")
    if isinstance(honoured.get("format"), dict):
        honoured["format"] = policy.honoured(
            honoured["format"], Format.__struct_fields__, {}, where="text.format."
        )
    return honoured


def _tool(place: int, tool: object, policy: FieldPolicy) -> object:
    """The tool as far as it is honoured; None for one that is left out."""
    where = f"tools[{place}]"
    if not isinstance(tool, dict):
        raise InvalidRequestError(f"{where} must be an object.", param=where)
    if tool.get("type") != "function":
        policy.refuse_or_drop(
            where,
            f"{where}.type is {tool.get('type')!r}; this server runs no tools itself, it knows functions only.",
        )
        return None
    return policy.honoured(tool, _TOOL_FIELDS, _NEUTRAL_TOOL, where=f"{where}.")


def _includes(name: object, policy: FieldPolicy) -> bool:
    if name == LOGPROBS:
        return True
    if name not in _NEUTRAL_INCLUDES:
        policy.refuse_or_drop(f"include.{name}", f"include has {name!r}, which this server does not tell.")
    return False


def _check(asked: ResponsesRequest) -> None:
    if asked.input == []:
        raise InvalidRequestError("input is empty; send a text or at least one item.", param="input")
    if asked.top_logprobs and not asked.logprobs:
        raise InvalidRequestError(
            f"top_logprobs is {asked.top_logprobs}, but include does not have {LOGPROBS!r}; add it.",
            param="top_logprobs",
        )
    if asked.format.type == "json_schema" and asked.format.schema is None:
        raise InvalidRequestError(
            "text.format.type is json_schema, but there is no text.format.schema; add it.",
            param="text.format.schema",
        )
