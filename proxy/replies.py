"""What successful replies look like, as types: for the API's description, and for the tests that hold replies to it.

The replies themselves are written as dicts and bytes, where a field costs least. What an upstream replied is forwarded as
it came, and may hold more and less.
"""

from typing import Literal

import msgspec

ChatEnd = Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not known is not there."""

    reasoning_tokens: int | msgspec.UnsetType = msgspec.UNSET
    accepted_prediction_tokens: int | msgspec.UnsetType = msgspec.UNSET
    rejected_prediction_tokens: int | msgspec.UnsetType = msgspec.UNSET


class TokenUsage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class TopLogprob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobContent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: list[TokenLogprobs]
    refusal: None


class ChatChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    message: Message
    logprobs: ChatLogprobContent | None
    finish_reason: ChatEnd


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: TokenUsage


class ToolCallDelta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`id` and `type` with the first of a call only."""

    index: int
    function: dict[str, str]
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobContent | None
    finish_reason: ChatEnd | None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`usage` where `stream_options.include_usage` asks for it: null, and the figures in a last chunk without choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: TokenUsage | msgspec.UnsetType | None = msgspec.UNSET


class TextLogprobs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whole, and as the chunks of a stream, whose `finish_reason` is null but in the last one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: TokenUsage | msgspec.UnsetType | None = msgspec.UNSET


class EmbeddingUsage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As numbers, or with `encoding_format` base64 as their float32 bytes."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int | None


class Models(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    object: Literal["list"]
    data: list[Model]


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt: str


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    status: Literal["live", "ready", "loading", "draining", "failed"]
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET
    tiers: dict[str, Literal["ready", "loading"]] | msgspec.UnsetType = msgspec.UNSET
    upstreams: dict[str, Literal["ready", "left_alone"]] | msgspec.UnsetType = msgspec.UNSET


class ErrorDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    error: ErrorDetails
