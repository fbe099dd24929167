"""The response object: what was asked, told back, and the items that the parts of an answer make."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..answer import Part, new_call_id
from ..answer_writer import Finish
from ..usage import Usage
from .request import ResponsesRequest

Kind = Literal["reasoning", "message", "function_call"]
Status = Literal["in_progress", "completed", "incomplete"]

_KIND: dict[str, Kind] = {
    "reasoning": "reasoning",
    "content": "message",
    "name": "function_call",
    "arguments": "function_call",
}
_PREFIX = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def head_of(
    asked: ResponsesRequest,
    *,
    id: str,
    created: int,
    model: str,
    temperature: float | None,
    top_p: float | None,
) -> dict[str, Any]:
    """The fields of a response that are known before its answer. `temperature`, `top_p`: those in effect; None for
    unknown."""
    given = asked.format
    shape: dict[str, Any] = {"type": given.type}
    if given.type == "json_schema":
        shape |= {name: getattr(given, name) for name in ("name", "description", "schema", "strict")}
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "metadata": asked.metadata or {},
        "model": model,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": temperature,
        "text": {"format": shape, "verbosity": "medium"},
        "tool_choice": asked.tool_choice or "auto",
        "tools": [
            {"description": None, "parameters": None, "strict": None, **tool} for tool in asked.tools or ()
        ],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": top_p,
        "truncation": "disabled",
        "user": asked.user,
    }


@dataclass(slots=True)
class Item:
    """One item of a response's output.

    Attributes:
        texts: pieces of the thoughts, of the message, or of the call's arguments.
        logprobs: of the message's tokens, where they were asked for.
    """

    id: str
    kind: Kind
    name: str = ""
    call_id: str = ""
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def part(self) -> dict[str, Any]:
        """The one part of a message or of thoughts."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "annotations": [], "logprobs": self.logprobs, "text": self.text}

    def as_dict(self, status: Status) -> dict[str, Any]:
        """As it is now. An item in progress has no parts yet, whatever was written of it."""
        head = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "function_call":
            text = "" if status == "in_progress" else self.text
            return {**head, "call_id": self.call_id, "name": self.name, "arguments": text}
        parts = [] if status == "in_progress" else [self.part]
        if self.kind == "reasoning":
            return {**head, "summary": [], "content": parts}
        return {**head, "role": "assistant", "content": parts}


class Output:
    """The items of one answer, as its parts come. Calls come one after the other, each from its name on."""

    def __init__(self, response_id: str, call_ids: Callable[[], str] = new_call_id) -> None:
        self.items: list[Item] = []
        self._identity = response_id.removeprefix("resp_")
        self._call_ids = call_ids

    def begins(self, part: Part) -> bool:
        """Whether it is the first of an item."""
        return not self.items or part.kind == "name" or self.items[-1].kind != _KIND[part.kind]

    def begin(self, kind: Kind, name: str = "") -> Item:
        item = Item(f"{_PREFIX[kind]}_{self._identity}_{len(self.items)}", kind, name)
        if kind == "function_call":
            item.call_id = self._call_ids()
        self.items.append(item)
        return item

    def begin_with(self, part: Part) -> Item:
        return self.begin(_KIND[part.kind], part.text if part.kind == "name" else "")

    def ended(self, finish: Finish) -> list[dict[str, Any]]:
        """All of the items. The last one is as incomplete as the answer."""
        items = [item.as_dict("completed") for item in self.items]
        if finish.reason in _INCOMPLETE:
            items[-1]["status"] = "incomplete"
        return items


def ended_response(
    head: dict[str, Any], output: list[dict[str, Any]], finish: Finish, usage: Usage, *, now: int
) -> dict[str, Any]:
    """A response whose answer has come to its end. `now`: Unix seconds."""
    reason = _INCOMPLETE.get(finish.reason)
    return {
        **head,
        "status": "completed" if reason is None else "incomplete",
        "completed_at": now if reason is None else None,
        "error": None,
        "incomplete_details": None if reason is None else {"reason": reason},
        "output": output,
        "usage": _usage(usage, thought=any(item["type"] == "reasoning" for item in output)),
    }


def response_of(
    head: dict[str, Any],
    parts: list[Part],
    finish: Finish,
    usage: Usage,
    *,
    now: int,
    logprobs: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The response of a whole answer. `logprobs`: of its one message."""
    output = Output(head["id"])
    for part in parts:
        if output.begins(part):
            output.begin_with(part)
        if part.kind != "name":
            output.items[-1].texts.append(part.text)
    if not output.items:
        output.begin("message")
    if logprobs:
        output.items[-1].logprobs = logprobs
    return ended_response(head, output.ended(finish), finish, usage, now=now)


def _usage(usage: Usage, *, thought: bool) -> dict[str, Any]:
    reasoning = usage.reasoning_tokens
    if reasoning is None and not thought:
        reasoning = 0  # where there are thoughts, unknown is not 0
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
