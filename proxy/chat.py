"""Chat messages as clients write them -> messages as chat templates read them. Text only.

Roles are those of every template: system, user, assistant; OpenAI's `developer` is the same thing as `system`
and becomes it, unless the template knows it by name.
"""

import re
from typing import Any

from ..errors import InvalidRequestError, UnsupportedParameterError
from .compat import FieldPolicy

ROLES = ("system", "developer", "user", "assistant")
_READS_NAME = re.compile(r"""message(\.name\b|\[\s*['"]name['"]\s*\])""")


def template_messages(
    messages: list[dict[str, Any]], *, template: str | None, policy: FieldPolicy
) -> list[dict[str, object]]:
    """Raises InvalidRequestError or UnsupportedParameterError naming the message and the field."""
    if not messages:
        raise InvalidRequestError("messages is empty; send at least one message.", param="messages")
    return [
        _template_message(f"messages[{place}]", message, template or "", policy)
        for place, message in enumerate(messages)
    ]


def _template_message(
    where: str, message: dict[str, Any], template: str, policy: FieldPolicy
) -> dict[str, object]:
    role = message.get("role")
    if role in ("tool", "function"):
        raise UnsupportedParameterError(
            f"{where}.role is {role!r}; tools are not supported by this server.", param=f"{where}.role"
        )
    if role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}.", param=f"{where}.role"
        )
    if role == "developer" and "developer" not in template:
        role = "system"
    result: dict[str, object] = {"role": role, "content": _text(where, message.get("content"))}
    for field, value in message.items():
        if field in ("role", "content") or value is None:
            continue
        if field == "name":
            if _READS_NAME.search(template):
                result["name"] = value
            else:
                policy.refuse_or_drop(
                    f"{where}.name", f"{where}.name: the model's chat template ignores names."
                )
            continue
        raise UnsupportedParameterError(
            f"{where}.{field} is not supported by this server.", param=f"{where}.{field}"
        )
    return result


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
