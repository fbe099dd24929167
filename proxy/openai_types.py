"""OpenAI's request bodies as typed values: which fields exist, of which type, and how they become
SamplingParams.

Decides nothing about fields this server does not honour (compat.py), messages (chat.py) or tools (tools.py).
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
import orjson

from ..errors import InvalidRequestError
from ..scheduler.grammar import Grammar
from ..scheduler.sampling_params import SamplingParams
from ..scheduler.urgency import Urgency

# What OpenAI's completions API (and vLLM's) generates when max_tokens is left out.
COMPLETION_MAX_TOKENS = 16

# Levels of lists and objects in a body. orjson reads 1,024, but Python's own recursion, of `repr` and of the chat
# template, ends before that; schemas are compiled by a parser that itself gives up at 128.
MAX_DEPTH = 128

T = TypeVar("T")


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class TextPart(msgspec.Struct, frozen=True):
    type: Literal["text"]
    text: str


class Prediction(msgspec.Struct, frozen=True):
    """OpenAI's predicted output: what most of the answer is likely to be."""

    type: Literal["content"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class JsonSchema(msgspec.Struct, frozen=True):
    """`strict` asks for what happens anyway: the output always obeys the schema."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def grammar(self) -> Grammar | None:
        """Raises InvalidRequestError where the schema is missing."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar.of_json_schema({"type": "object"})
        if self.json_schema is None:
            raise InvalidRequestError(
                "response_format.type is json_schema, but there is no response_format.json_schema; add it.",
                param="response_format",
            )
        return Grammar.of_json_schema(self.json_schema.schema)


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields both endpoints share. None means "not given", as in OpenAI's own clients."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    penstock: dict[str, Any] | None = None
    """Penstock's own: {"cache": {...}} (controls.py), {"sparse_attention": {"mass": 0.9} or false}, {"drafters": []},
    {"priority": -1, "ttft_deadline": 0.5, "deadline": 10}."""

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def grammar(self) -> Grammar | None:
        """Raises InvalidRequestError when the output is asked to obey several."""
        given = {
            "response_format": self.response_format.grammar if self.response_format else None,
            "guided_regex": None if self.guided_regex is None else Grammar("regex", self.guided_regex),
            "guided_grammar": None if self.guided_grammar is None else Grammar("lark", self.guided_grammar),
        }
        asked = {name: grammar for name, grammar in given.items() if grammar is not None}
        if len(asked) > 1:
            raise InvalidRequestError(
                f"{' and '.join(asked)} are given; an output can obey one of them.", param=list(asked)[1]
            )
        return next(iter(asked.values()), None)

    @property
    def urgency(self) -> Urgency:
        """Raises InvalidRequestError."""
        return urgency_of(self.penstock or {})


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prediction: Prediction | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    def sampling_params(self, defaults: Mapping[str, Any]) -> tuple[SamplingParams, bool]:
        """What to ask the engine for, and whether nothing at all may be generated (a limit of 0 tokens).

        `defaults`: the model's own values for fields that the request leaves open. Raises InvalidRequestError.
        """
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                f"top_logprobs is {self.top_logprobs} while logprobs is off; set logprobs to true.",
                param="top_logprobs",
            )
        limits = {limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None}
        if len(limits) > 1:
            raise InvalidRequestError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}; "
                "they mean the same: send one of them.",
                param="max_tokens",
            )
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return _sampling_params(self, limits.pop() if limits else None, logprobs, defaults)


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None

    def sampling_params(self, defaults: Mapping[str, Any]) -> tuple[SamplingParams, bool]:
        """As ChatRequest's."""
        return _sampling_params(self, self.max_tokens, self.logprobs, defaults)


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def as_chat(self) -> ChatRequest:
        """The chat request whose prompt is counted."""
        return ChatRequest(model=self.model or "", messages=self.messages or [], tools=self.tools)


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str | None = None
    tokens: list[int]


def urgency_of(extension: Mapping[str, Any]) -> Urgency:
    """Of the field `penstock`. Raises InvalidRequestError."""
    names = Urgency.__struct_fields__
    return Urgency(**{name: extension[name] for name in names if extension.get(name) is not None})


def decode_object(body: bytes) -> dict[str, Any]:
    """Raises InvalidRequestError unless the body is a JSON object."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(f"The body is a JSON {type(value).__name__}; it must be an object.")
    # Only a body with that many opening brackets can be that deep; counting them takes 1 ms for 8 MiB.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and not _is_shallow(value):
        raise InvalidRequestError(f"The body is nested more than {MAX_DEPTH} levels deep; send it flatter.")
    return value


def _is_shallow(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for holder in level
            for item in (holder.values() if type(holder) is dict else holder)
            if type(item) is dict or type(item) is list
        ]
        if not level:
            return True
    return False


def convert(fields: object, type_: type[T]) -> T:
    """Raises InvalidRequestError naming the field whose value has the wrong type."""
    try:
        return msgspec.convert(fields, type_)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        param = path.strip("`.").removesuffix("[...]") or _quoted(what)
        place = f"{path.strip('`.')}: " if path else ""
        raise InvalidRequestError(f"{place}{what[:1].lower()}{what[1:]}.", param=param) from error


def convert_at(where: str, fields: object, type_: type[T]) -> T:
    """`convert` of what stands at `where` in the request. Raises InvalidRequestError naming the whole path."""
    try:
        return convert(fields, type_)
    except InvalidRequestError as error:
        param = where + (f".{error.param}" if error.param else "")
        raise InvalidRequestError(f"{where}: {error.message}", param=param) from error


def _quoted(text: str) -> str | None:
    """The field in msgspec's "Object missing required field `model`"."""
    return text.split("`")[1] if text.count("`") >= 2 else None


def _sampling_params(
    request: GenerationRequest, limit: int | None, logprobs: int | None, defaults: Mapping[str, Any]
) -> tuple[SamplingParams, bool]:
    given: dict[str, Any] = dict(defaults)
    given |= {
        name: value
        for name in (
            "n",
            "min_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "ignore_eos",
        )
        if (value := getattr(request, name)) is not None
    }
    if request.logit_bias:
        given["logit_bias"] = {_token_id(key): bias for key, bias in request.logit_bias.items()}
    if request.stop is not None:
        given["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    if request.stop_token_ids is not None:
        given["stop_token_ids"] = tuple(request.stop_token_ids)
    given["grammar"] = request.grammar
    if request.penstock:
        given["sparse_attention"] = request.penstock.get("sparse_attention")
        given["drafters"] = request.penstock.get("drafters")
    nothing = limit == 0
    params = SamplingParams(max_tokens=None if nothing else limit, logprobs=logprobs, **given)
    return params, nothing


def _token_id(key: str) -> int:
    if not is_token_id(key):
        raise InvalidRequestError(
            f"logit_bias has the key {key!r}; keys are token ids (see /tokenize).", param="logit_bias"
        )
    return int(key)


def is_token_id(key: str) -> bool:
    # Ten digits hold every 32-bit id; what is longer is no number the engine could be sent.
    return key.isascii() and key.isdigit() and len(key) <= 10
