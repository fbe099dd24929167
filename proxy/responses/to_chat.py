"""A Responses request -> the fields of a chat request that asks the same. A pure function, for whatever speaks chat."""

from dataclasses import dataclass
from typing import Any

from ...errors import InvalidRequestError, UnsupportedParameterError
from ..compat import FieldPolicy
from .conversation import Conversation
from .names import OwnNames
from .request import Format, ResponsesRequest

# Of the same name and meaning in both.
_SAME = (
    "model",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "penstock",
)


@dataclass(frozen=True, slots=True)
class ChatForm:
    """The fields of the chat request, as decoded JSON, and what they are called in the Responses request."""

    fields: dict[str, Any]
    names: OwnNames


def to_chat(asked: ResponsesRequest, policy: FieldPolicy) -> ChatForm:
    """Raises InvalidRequestError or UnsupportedParameterError naming a field of the Responses request."""
    conversation = Conversation(policy)
    if asked.instructions is not None:
        conversation.add_text("system", asked.instructions, "instructions")
    if isinstance(asked.input, str):
        conversation.add_text("user", asked.input, "input")
    else:
        for place, item in enumerate(asked.input):
            conversation.add_item(f"input[{place}]", item)
    fields: dict[str, Any] = {name: getattr(asked, name) for name in _SAME}
    fields |= {
        "messages": conversation.messages,
        "max_completion_tokens": asked.max_output_tokens,
        "response_format": _response_format(asked.format),
        "tools": [_tool(tool) for tool in asked.tools] if asked.tools else None,
        "tool_choice": _tool_choice(asked.tool_choice),
    }
    if asked.logprobs:
        fields |= {"logprobs": True, "top_logprobs": asked.top_logprobs}
    if asked.stream:
        # A response always tells its usage.
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    fields |= asked.engine
    return ChatForm(
        {name: value for name, value in fields.items() if value is not None}, OwnNames(conversation.origins)
    )


def _response_format(given: Format) -> dict[str, Any] | None:
    if given.type == "text":
        return None
    if given.type == "json_object":
        return {"type": "json_object"}
    schema = {name: getattr(given, name) for name in ("name", "description", "schema", "strict")}
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in schema.items() if value is not None},
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": function}


def _tool_choice(given: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(given, dict):
        return given
    if given.get("type") != "function":
        raise UnsupportedParameterError(
            f'tool_choice.type is {given.get("type")!r}; this server knows "none", "auto", "required" and '
            '{"type": "function", "name": "..."}.',
            param="tool_choice.type",
        )
    if not isinstance(given.get("name"), str):
        raise InvalidRequestError("tool_choice.name must be a function's name.", param="tool_choice.name")
    return {"type": "function", "function": {"name": given["name"]}}
