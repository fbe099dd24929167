"""Tool calls of earlier turns, as the client tells them -> as the model's chat template reads them."""

from typing import Any, Literal

import msgspec
import orjson

from ..errors import InvalidRequestError, UnsupportedParameterError
from ..models.tool_format import ToolFormat
from .openai_types import convert_at


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class PastCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None  # some clients keep it from the stream


class PastCalls:
    """The calls of one conversation so far."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def made(self, where: str, calls: object, form: ToolFormat | str | None) -> dict[str, object]:
        """An assistant message's calls. Raises InvalidRequestError or UnsupportedParameterError."""
        readable = _readable(f"{where}.tool_calls", form)
        if not isinstance(calls, list):
            raise InvalidRequestError(f"{where}.tool_calls must be a list.", param=f"{where}.tool_calls")
        return {
            "tool_calls": [
                self._call(f"{where}.tool_calls[{place}]", call, readable) for place, call in enumerate(calls)
            ]
        }

    def result(self, where: str, message: dict[str, Any], form: ToolFormat | str | None) -> dict[str, object]:
        """A tool message's own fields, taken out of it; templates get the function's name too."""
        _readable(f"{where}.role", form)
        call_id = message.pop("tool_call_id", None)
        name = self._names.get(call_id) if isinstance(call_id, str) else None
        if name is None:
            raise InvalidRequestError(
                f"{where}.tool_call_id is {call_id!r}; it must be the id of a call in an assistant message before.",
                param=f"{where}.tool_call_id",
            )
        if message.pop("name", name) != name:
            raise InvalidRequestError(
                f"{where}.name is not that of the called function, {name!r}; leave it out.",
                param=f"{where}.name",
            )
        return {"tool_call_id": call_id, "name": name}

    def _call(self, where: str, given: object, form: ToolFormat) -> dict[str, object]:
        call = convert_at(where, given, PastCall)
        self._names[call.id] = call.function.name
        try:
            arguments = orjson.loads(call.function.arguments or "{}")
        except orjson.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidRequestError(
                f"{where}.function.arguments is no JSON object.", param=f"{where}.function.arguments"
            )
        return {
            "id": call.id,
            "type": "function",
            "function": {
                "name": call.function.name,
                "arguments": call.function.arguments if form.arguments_as_text else arguments,
            },
        }


def _readable(param: str, form: ToolFormat | str | None) -> ToolFormat:
    if isinstance(form, ToolFormat):
        return form
    why = "does not mention tools" if form is None else f"writes calls in a way that cannot be read: {form}"
    raise UnsupportedParameterError(
        f"{param}: the model's chat template {why}. Leave calls out of the messages, or use another model.",
        param=param,
    )
