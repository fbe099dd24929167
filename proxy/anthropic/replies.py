"""What successful replies of Anthropic's API look like, as types; see `proxy/replies.py`."""

from typing import Any, Literal

import msgspec


class MessageUsage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    service_tier: Literal["standard"]


class MessageReply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`content`: blocks of text, thinking and tool_use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(msgspec.Struct, frozen=True):
    """`message_start`, `content_block_start`, `content_block_delta`, ... as Anthropic names them."""

    type: str


class TokenCount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_tokens: int


class MessageErrorDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    message: str


class MessageError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["error"]
    error: MessageErrorDetails
    request_id: str
