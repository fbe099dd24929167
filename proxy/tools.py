"""The tools of a chat request: which functions there are, and which of them may or must be called.

Refuses what the model's chat template cannot show to the model, and what names no function.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..errors import InvalidRequestError
from ..models.tokenizer import Tokenizer
from ..models.tool_format import ToolFormat
from ..scheduler.grammar import Grammar
from .compat import FieldPolicy
from .openai_types import ChatRequest, convert, convert_at

# OpenAI's limit.
MAX_TOOLS = 128
# Anthropic's limit; OpenAI's is 64.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")

Mode = Literal["none", "auto", "required"]


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


class Named(msgspec.Struct, frozen=True):
    name: str


class NamedChoice(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: Named


@dataclass(frozen=True, slots=True)
class CallableFunction:
    """A function that may be called: its name and the grammar of its arguments."""

    name: str
    arguments: Grammar


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request.

    Attributes:
        format: how the model writes calls.
        mode: whether functions may not, may or must be called.
        callable: those that may.
        parallel: whether one answer may hold several calls.
        shown: all of them, as the template shows them to the model.
    """

    format: ToolFormat
    mode: Mode
    callable: tuple[CallableFunction, ...]
    parallel: bool
    shown: list[dict[str, Any]]

    @classmethod
    def of(cls, asked: ChatRequest, tokenizer: Tokenizer, policy: FieldPolicy) -> "Tools | None":
        """None for a request without tools. Raises InvalidRequestError or UnsupportedParameterError."""
        if not asked.tools:
            if asked.tool_choice not in (None, "none", "auto"):
                raise InvalidRequestError(
                    f"tool_choice is {asked.tool_choice!r}, but there are no tools; send tools.",
                    param="tool_choice",
                )
            return None
        form = tokenizer.tool_format
        if not isinstance(form, ToolFormat):
            _refuse(form, asked, policy)
            return None
        if len(asked.tools) > MAX_TOOLS:
            raise InvalidRequestError(
                f"tools holds {len(asked.tools)} tools; at most {MAX_TOOLS} fit one request.", param="tools"
            )
        functions = [_function(place, given) for place, given in enumerate(asked.tools)]
        mode, name = _choice(asked.tool_choice)
        names = [function.name for function in functions]
        if name is not None and name not in names:
            raise InvalidRequestError(
                f"tool_choice names the function {name!r}; tools has: {', '.join(names)}.",
                param="tool_choice",
            )
        for place, each in enumerate(names):
            if each in names[:place]:
                raise InvalidRequestError(
                    f"tools has two functions named {each!r}; names must differ.",
                    param=f"tools[{place}].function.name",
                )
        return cls(
            format=form,
            mode=mode,
            callable=tuple(
                CallableFunction(function.name, _arguments(place, function, form))
                for place, function in enumerate(functions)
                if name in (None, function.name)
            ),
            parallel=asked.parallel_tool_calls is not False,
            shown=[_shown(function) for function in functions],
        )


def _refuse(reason: str | None, asked: ChatRequest, policy: FieldPolicy) -> None:
    why = (
        "the model's chat template does not mention tools."
        if reason is None
        else f"how the model's chat template writes calls cannot be read: {reason}."
    )
    policy.refuse_or_drop("tools", f"tools are not supported with this model: {why}")
    if asked.tool_choice not in (None, "none", "auto"):
        policy.refuse_or_drop("tool_choice", "tool_choice needs tools.")


def _function(place: int, given: dict[str, Any]) -> Function:
    function = convert_at(f"tools[{place}]", given, Tool).function
    if not _NAME.fullmatch(function.name):
        raise InvalidRequestError(
            f"tools[{place}].function.name is {function.name!r}; it must be 1 to 128 letters, digits, "
            "'_', '-' or '.'.",
            param=f"tools[{place}].function.name",
        )
    return function


def _shown(function: Function) -> dict[str, Any]:
    """As templates expect it, some of which insist on every field. `strict` is no business of the model."""
    return {
        "type": "function",
        "function": {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        },
    }


def _choice(given: object) -> tuple[Mode, str | None]:
    """The mode, and the one function that must be called."""
    if given is None:
        return "auto", None
    if given in ("none", "auto", "required"):
        return given, None
    if isinstance(given, dict):
        try:
            return "required", convert(given, NamedChoice).function.name
        except InvalidRequestError:
            pass
    raise InvalidRequestError(
        'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}.',
        param="tool_choice",
    )


def _arguments(place: int, function: Function, form: ToolFormat) -> Grammar:
    """Arguments always obey the schema. What of it cannot be enforced is refused where `strict` is true, and otherwise
    left to the model, as OpenAI does."""
    param = f"tools[{place}].function.parameters"
    schema = function.parameters
    if schema is None:
        schema = {"properties": {}, "additionalProperties": False}
    if schema.get("type", "object") != "object":
        raise InvalidRequestError(
            f"{param}.type is {schema['type']!r}; arguments are an object.", param=f"{param}.type"
        )
    writing: dict[str, Any] = {"lenient": not function.strict}
    if form.separators is not None:
        item, key = form.separators
        writing |= {"whitespace_flexible": False, "item_separator": item, "key_separator": key}
    whole = {**schema, "type": "object", "x-guidance": writing}
    return msgspec.structs.replace(Grammar.of_json_schema(whole), param=param)
