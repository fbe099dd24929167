"""What successful replies of the Responses API look like, as types; see `proxy/replies.py`. A response also gives back what
its request said: these fields are left out here.
"""

from typing import Any, Literal

import msgspec


class ResponseReply(msgspec.Struct, frozen=True, kw_only=True):
    """`output`: items of type message, reasoning and function_call."""

    id: str
    object: Literal["response"]
    created_at: float
    model: str
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    store: Literal[False]


class ResponseEvent(msgspec.Struct, frozen=True):
    """`response.created`, `response.output_text.delta`, ... as OpenAI names them."""

    type: str
    sequence_number: int


class InputTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    object: Literal["response.input_tokens"]
    input_tokens: int
