"""The items of a Responses request -> the messages of a chat request.

What a model said at once comes as several items here (thoughts, a message, calls) and is one message there. Reads text only,
and drops nothing of it: what a model was told or said is never left out.
"""

from typing import Any

import msgspec

from ...errors import InvalidRequestError, UnsupportedParameterError
from ..compat import FieldPolicy
from ..openai_types import convert_at

_ROLES = ("user", "system", "developer", "assistant")
_TEXT_FIELD = {"input_text": "text", "output_text": "text", "refusal": "refusal", "reasoning_text": "text"}
# What items and parts may say of themselves that no model reads.
_BESIDE_ITEMS = ("id", "status")
_BESIDE_PARTS = ("annotations", "logprobs", "prompt_cache_breakpoint")


class _Call(msgspec.Struct, frozen=True):
    call_id: str
    name: str
    arguments: str


class _Result(msgspec.Struct, frozen=True):
    call_id: str
    output: str | list[dict[str, Any]]
    name: str | None = None


class Conversation:
    """Messages of a chat request, and where in the Responses request each part of them came from.

    Attributes:
        messages: so far.
        origins: path in the chat request -> path in the Responses request, for errors.
    """

    def __init__(self, policy: FieldPolicy) -> None:
        self.messages: list[dict[str, Any]] = []
        self.origins: dict[str, str] = {}
        self._policy = policy
        self._answer: dict[str, Any] | None = None  # the model's message that the next item may belong to

    def add_text(self, role: str, text: str, origin: str) -> None:
        self._add({"role": role, "content": text}, origin)

    def add_item(self, where: str, item: dict[str, Any]) -> None:
        """Raises InvalidRequestError or UnsupportedParameterError naming `where`."""
        kind = item.get("type") or "message"
        if kind == "message":
            self._message(where, item)
        elif kind == "reasoning":
            self._reasoning(where, item)
        elif kind == "function_call":
            self._call(where, item)
        elif kind == "function_call_output":
            self._result(where, item)
        elif kind == "item_reference":
            raise UnsupportedParameterError(
                f"{where} refers to an item, but nothing is stored here; send the item itself.", param=where
            )
        else:
            raise UnsupportedParameterError(
                f"{where}.type is {kind!r}; this server reads messages, reasoning, and calls of functions and their "
                "outputs.",
                param=f"{where}.type",
            )

    def _message(self, where: str, item: dict[str, Any]) -> None:
        _only(where, item, ("type", "role", "content"))
        role = item.get("role")
        if role not in _ROLES:
            raise InvalidRequestError(
                f"{where}.role is {role!r}; it must be one of {', '.join(_ROLES)}.", param=f"{where}.role"
            )
        content = _content(f"{where}.content", item.get("content"))
        if role != "assistant":
            self._add({"role": role, "content": content}, where)
            return
        answer = self._answer
        if answer is None or answer["content"] is not None or "tool_calls" in answer:
            answer = self._begin_answer(where)
        answer["content"] = content

    def _reasoning(self, where: str, item: dict[str, Any]) -> None:
        _only(where, item, ("type", "summary", "content"))
        if item.get("summary"):
            self._policy.refuse_or_drop(
                f"{where}.summary", f"{where}.summary: this server gives the thoughts themselves, in content."
            )
        content = _content(f"{where}.content", item.get("content") or "")
        thoughts = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
        if not thoughts:
            return
        answer = self._answer
        if answer is None or answer["content"] is not None or "tool_calls" in answer:
            answer = self._begin_answer(where)
        before = answer.get("reasoning_content")
        answer["reasoning_content"] = thoughts if before is None else f"{before}\n{thoughts}"
        self.origins[f"messages[{len(self.messages) - 1}].reasoning_content"] = f"{where}.content"

    def _call(self, where: str, item: dict[str, Any]) -> None:
        _only(where, item, ("type", *_Call.__struct_fields__))
        call = convert_at(where, item, _Call)
        answer = self._answer or self._begin_answer(where)
        calls = answer.setdefault("tool_calls", [])
        self.origins[f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}]"] = where
        calls.append(
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
        )

    def _result(self, where: str, item: dict[str, Any]) -> None:
        _only(where, item, ("type", *_Result.__struct_fields__))
        result = convert_at(where, item, _Result)
        message: dict[str, Any] = {
            "role": "tool",
            "tool_call_id": result.call_id,
            "content": _content(f"{where}.output", result.output),
        }
        if result.name is not None:
            message["name"] = result.name
        self._add(message, where)

    def _begin_answer(self, where: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"role": "assistant", "content": None}
        self._add(answer, where)
        self._answer = answer
        return answer

    def _add(self, message: dict[str, Any], origin: str) -> None:
        self.origins[f"messages[{len(self.messages)}]"] = origin
        self.messages.append(message)
        self._answer = None


def _only(where: str, item: dict[str, Any], fields: tuple[str, ...]) -> None:
    """Raises UnsupportedParameterError for a field with a value that is none of these."""
    for name, value in item.items():
        if value is not None and name not in fields and name not in _BESIDE_ITEMS:
            raise UnsupportedParameterError(
                f"{where}.{name} is not supported by this server.", param=f"{where}.{name}"
            )


def _content(where: str, content: object) -> str | list[dict[str, str]]:
    """As chat messages have it: one text as it is, several as parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(f"{where} must be a text or a list of parts.", param=where)
    texts = [_part(f"{where}[{place}]", part) for place, part in enumerate(content)]
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]


def _part(where: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise InvalidRequestError(
            f'{where}: a part looks like {{"type": "input_text", "text": "..."}}.', param=where
        )
    field = _TEXT_FIELD.get(kind)
    if field is None:
        raise UnsupportedParameterError(
            f"{where}.type is {kind!r}; this server reads text only.", param=f"{where}.type"
        )
    for name, value in part.items():
        if value is not None and name not in ("type", field, *_BESIDE_PARTS):
            raise UnsupportedParameterError(
                f"{where}.{name} is not supported by this server.", param=f"{where}.{name}"
            )
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.{field} must be a text.", param=f"{where}.{field}")
    return text
