"""What an upstream was asked, as the cache keeps it whole. The local engine's chats are told so by chat_job.py.

The form is what chat templates read: texts, no parts. What holds more than texts (images, token ids, several prompts) is
None: nothing is learnt from half of it.
"""

from typing import Any

from ..cache import WholePrompt

_KEPT = ("name", "reasoning_content", "tool_calls", "tool_call_id")


def whole_prompt(fields: dict[str, Any], model: str) -> WholePrompt | None:
    """Of a request in OpenAI's older APIs, or Anthropic's. What no such API takes is None as well."""
    text, given = fields.get("prompt"), fields.get("messages")
    if given is None:
        # With these the answer is not just what follows the prompt.
        if not isinstance(text, str) or fields.get("suffix") or fields.get("echo"):
            return None
        return WholePrompt(model, text=text)
    try:
        if fields.get("system") is not None:  # Anthropic's
            given = [{"role": "system", "content": fields["system"]}, *given]
        messages = [_message(message) for message in given]
    except (AttributeError, TypeError):  # what the upstream has made of it is not known here
        return None
    return WholePrompt(model, messages=messages, tools=fields.get("tools") or fields.get("functions") or None)


def _message(given: dict[str, Any]) -> dict[str, Any]:
    """Raises AttributeError or TypeError where it is none, or more than text."""
    role, content = given.get("role"), given.get("content")
    if isinstance(content, list):
        content = "\n".join(_text(part) for part in content)
    if not isinstance(content, str) and not given.get("tool_calls"):
        raise TypeError
    # OpenAI's newer name of the same role, which few templates know.
    message = {"role": "system" if role == "developer" else role, "content": content}
    return message | {name: given[name] for name in _KEPT if given.get(name) is not None}


def _text(part: dict[str, Any]) -> str:
    text = part.get("text") if part.get("type") == "text" else None
    if not isinstance(text, str):
        raise TypeError
    return text
