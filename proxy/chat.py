"""Chat messages as clients write them -> messages as chat templates read them. Text only.

Roles are those of every template: system, user, assistant; OpenAI's `developer` is the same thing as `system`
and becomes it, unless the template knows it by name. Calls of tools and their results: past_calls.py.
"""

import re
from typing import Any

from ..errors import InvalidRequestError, UnsupportedParameterError
from ..models.tokenizer import Tokenizer
from ..models.tool_format import ToolFormat
from .compat import FieldPolicy
from .past_calls import PastCalls

_RESERVED = frozenset({"self", "messages", "tools", "documents", "add_generation_prompt"})
ROLES = ("system", "developer", "user", "assistant", "tool")
_READS_NAME = re.compile(r"""message(\.name\b|\[\s*['"]name['"]\s*\])""")


def template_messages(
    messages: list[dict[str, Any]], *, tokenizer: Tokenizer, policy: FieldPolicy
) -> list[dict[str, object]]:
    """Raises InvalidRequestError or UnsupportedParameterError naming the message and the field."""
    if not messages:
        raise InvalidRequestError("messages is empty; send at least one message.", param="messages")
    reader = _MessageReader(tokenizer, policy)
    return [reader.read(f"messages[{place}]", message) for place, message in enumerate(messages)]


def last_question(messages: list[dict[str, object]]) -> str | None:
    """The last turn, where it is the user's."""
    content = messages[-1].get("content")
    return content if messages[-1]["role"] == "user" and isinstance(content, str) else None


def template_variables(given: dict[str, Any] | None) -> dict[str, Any]:
    """The request's `chat_template_kwargs`: whatever the model's template knows, but not what has a field of
    its own.

    Raises InvalidRequestError naming the variable.
    """
    for name in given or {}:
        if name in _RESERVED:
            raise InvalidRequestError(
                f"chat_template_kwargs must not hold {name!r}; only the request's own fields set it.",
                param=f"chat_template_kwargs.{name}",
            )
    return given or {}


class _MessageReader:
    """Reads one conversation's messages in turn."""

    def __init__(self, tokenizer: Tokenizer, policy: FieldPolicy) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.chat_template or ""
        self._policy = policy
        self._calls = PastCalls()

    def read(self, where: str, message: dict[str, Any]) -> dict[str, object]:
        role = message.get("role")
        if role not in ROLES:
            raise InvalidRequestError(
                f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}.", param=f"{where}.role"
            )
        if role == "developer" and "developer" not in self._template:
            role = "system"
        given = {name: value for name, value in message.items() if name != "role" and value is not None}
        result: dict[str, object] = {"role": role}
        if role == "tool":
            result |= self._calls.result(where, given, self._tokenizer.tool_format)
        if role == "assistant":
            result |= self._thoughts(where, given)
            if calls := given.pop("tool_calls", None):
                form = self._tokenizer.tool_format
                result |= self._calls.made(where, calls, form)
                if not given.get("content"):
                    given.pop("content", None)
                    assert isinstance(form, ToolFormat)
                    result["content"] = form.empty_content
            elif "reasoning_content" in message:
                given.setdefault("content", "")
        if "content" not in result:
            result["content"] = _text(where, given.pop("content", None))
        for field, value in given.items():
            if field == "name":
                result |= self._name(where, value)
            else:
                raise UnsupportedParameterError(
                    f"{where}.{field} is not supported by this server.", param=f"{where}.{field}"
                )
        return result

    def _thoughts(self, where: str, given: dict[str, Any]) -> dict[str, object]:
        """Earlier thoughts, for templates that show them to the model."""
        thoughts = given.pop("reasoning_content", None)
        if thoughts is None:
            return {}
        if not isinstance(thoughts, str):
            raise InvalidRequestError(
                f"{where}.reasoning_content must be a string.", param=f"{where}.reasoning_content"
            )
        if "reasoning_content" in self._template:
            return {"reasoning_content": thoughts}
        if self._tokenizer.thinking is None:
            self._policy.refuse_or_drop(
                f"{where}.reasoning_content",
                f"{where}.reasoning_content: the model's chat template marks no thoughts.",
            )
        return {}  # such a template cuts the thoughts off earlier answers itself

    def _name(self, where: str, name: object) -> dict[str, object]:
        if _READS_NAME.search(self._template):
            return {"name": name}
        self._policy.refuse_or_drop(
            f"{where}.name", f"{where}.name: the model's chat template ignores names."
        )
        return {}


def _text(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(
            f"{where}.content is {_shown(content)}; it must be a string or a list of text parts.",
            param=f"{where}.content",
        )
    # Parts are separate blocks of text; one line break keeps them apart, as vLLM does.
    return "\n".join(_part(f"{where}.content[{place}]", part) for place, part in enumerate(content))


def _part(where: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise InvalidRequestError(
            f'{where} is {_shown(part)}; a part looks like {{"type": "text", "text": "..."}}.', param=where
        )
    if kind != "text":
        raise UnsupportedParameterError(
            f"{where}.type is {kind!r}; this model reads text only.", param=f"{where}.type"
        )
    if not isinstance(part.get("text"), str):
        raise InvalidRequestError(f"{where}.text must be a string.", param=f"{where}.text")
    if extra := part.keys() - {"type", "text"}:
        field = sorted(extra)[0]
        raise UnsupportedParameterError(
            f"{where}.{field} is not supported by this server.", param=f"{where}.{field}"
        )
    return str(part["text"])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
