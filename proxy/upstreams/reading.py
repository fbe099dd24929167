"""What a reply says of itself, read beside its forwarding: is it whole, what did it cost, and what of it can be kept.

One reading per API; this file has what they share, and OpenAI's two older ones, whose streams are pieces of the same body.
"""

from typing import Any, Protocol

import msgspec
import orjson

from ...cache import CachedChoice, CachedCompletion
from ...errors import PenstockError, UpstreamError
from .. import sse
from ..errors import body_of
from ..usage import count_of
from .events import data_of
from .refusal import error_in

# Of a longer answer nothing is kept.
MAX_KEPT_CHARACTERS = 1 << 20
# Objects within each other, in a piece of a stream; of a deeper one nothing is kept.
MAX_LEVELS = 100

_LAST_TYPES = ("response.completed", "response.incomplete", "response.failed")
_LAST_OF_RESPONSES = tuple(name.encode() for name in _LAST_TYPES)


class TokenCounts(msgspec.Struct, frozen=True):
    """As the upstream reports them; a figure that it leaves out is unknown, not 0."""

    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None


class Reading(Protocol):
    """Of one reply.

    Attributes:
        tokens: None while, or if, it reports none.
        finish_reasons: of the choices that have ended.
    """

    tokens: TokenCounts | None
    finish_reasons: list[str]

    @property
    def finished(self) -> bool:
        """All that belongs to the reply has come."""
        ...

    def shown(self, event: bytes) -> bytes:
        """Reads an event; what the client gets of it.

        Raises UpstreamError for what is no event of this API, and for one that tells of an error.
        """
        ...

    def end(self) -> bytes:
        """What the client gets after the last event."""
        ...

    def whole(self, body: bytes) -> bytes:
        """Reads a reply that came at once; what the client gets. Raises UpstreamError."""
        ...

    def failed(self, error: PenstockError) -> bytes:
        """What the client gets where a stream breaks off."""
        ...

    def completion(self, *, seconds: float) -> CachedCompletion | None:
        """What the cache keeps; None of what did not end by itself, or cannot be put together again."""
        ...


class ForwardedReading:
    """What readings have in common whose client speaks the upstream's API: bytes pass as they are."""

    def event(self, data: bytes) -> bool:
        """Reads an event's data; False where it is for us alone."""
        raise NotImplementedError

    def body(self, body: bytes) -> None:
        raise NotImplementedError

    def shown(self, event: bytes) -> bytes:
        return event if self.event(data_of(event)) else b""

    def end(self) -> bytes:
        return b""

    def whole(self, body: bytes) -> bytes:
        self.body(body)
        return body

    def failed(self, error: PenstockError) -> bytes:
        return sse.event(body_of(error))


class OpenAIReading(ForwardedReading):
    """Of /chat/completions and /completions.

    Args:
        chat: which of the two.
        keep: whether a completion will be asked for.
        own_usage: the usage event was not the client's wish, so that it is not shown.
        choices: so many were asked for, at least: one may not have begun when the stream ends.
    """

    def __init__(self, *, chat: bool, keep: bool, own_usage: bool, choices: int = 1) -> None:
        self.tokens: TokenCounts | None = None
        self.finish_reasons: list[str] = []
        self._text_field = "message" if chat else "text"
        self._keep = keep
        self._own_usage = own_usage
        self._least = choices
        self._done = False
        self._body: dict[str, Any] | None = None
        self._choices: dict[int, dict[str, Any]] = {}
        self._kept = 0

    @property
    def finished(self) -> bool:
        return self._done or self._all_ended

    def event(self, data: bytes) -> bool:
        if data == b"[DONE]":
            self._done = True
            return True
        if not data:
            return True
        chunk = decoded(data)
        choices = _choices_in(chunk)
        if choices is None and "error" in chunk:
            raise UpstreamError(error_in(data) or "The upstream failed.")
        if (usage := chunk.get("usage")) is not None:
            self.tokens = tokens_of(usage)
            if self._keep and self._body is not None:
                self._body["usage"] = usage
        if not choices:
            return not (self._own_usage and usage is not None)
        if self._keep and self._body is None:
            self._body = {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        for piece in choices:
            self._piece(piece)
        return True

    def body(self, body: bytes) -> None:
        whole = decoded(body)
        usage = whole.get("usage")
        self.tokens = None if usage is None else tokens_of(usage)
        self._choices = dict(enumerate(_choices_in(whole) or []))
        self.finish_reasons = [str(choice.get("finish_reason")) for choice in self._choices.values()]
        self._body, self._done = whole, True
        self._kept = len(body)

    def completion(self, *, seconds: float) -> CachedCompletion | None:
        whole = self._body
        if whole is None or not self.finished or self._kept > MAX_KEPT_CHARACTERS:
            return None
        # Without [DONE] the usage may be missing.
        if not self._done or not self._all_ended:
            return None
        if not all(reason in ("stop", "tool_calls") for reason in self.finish_reasons):
            return None
        if "choices" not in whole:
            chat = self._text_field == "message"
            choices = [_joined(self._choices[index]) for index in sorted(self._choices)]
            for choice in choices if chat else ():
                said = choice.get("message", {})
                if isinstance(said, dict):
                    choice["message"] = {"role": "assistant", "content": None, **said}
            whole = {**whole, "object": "chat.completion" if chat else "text_completion", "choices": choices}
        if not all(map(_can_be_replayed, whole["choices"])):
            return None
        try:
            wire = orjson.dumps(whole)
        except orjson.JSONEncodeError:  # it reads deeper nests than it writes
            return None
        return CachedCompletion(
            choices=[
                CachedChoice(
                    text=_text_of(choice),
                    token_ids=[],
                    finish_reason=str(choice["finish_reason"]),
                    stop_reason=None,
                    logprobs=None,
                    wire=None if place else wire,
                )
                for place, choice in enumerate(whole["choices"])
            ],
            prompt_tokens=(self.tokens.prompt if self.tokens else None) or 0,
            engine_seconds=seconds,
        )

    @property
    def _all_ended(self) -> bool:
        return len(self.finish_reasons) == max(len(self._choices), self._least)

    def _piece(self, piece: dict[str, Any]) -> None:
        index = piece.get("index", 0)
        if not isinstance(index, int):
            raise UpstreamError("The upstream sent a choice whose index is no number.")
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = {"index": index}
        if (reason := piece.get("finish_reason")) is not None and "finish_reason" not in choice:
            choice["finish_reason"] = reason
            self.finish_reasons.append(str(reason))
        if self._keep:
            try:
                self._kept += _gather(choice, piece)
            except (AttributeError, TypeError):
                # Pieces that do not go together: a client may know what to do with them, the cache does not.
                self._keep, self._body = False, None
            else:
                self._keep = self._kept <= MAX_KEPT_CHARACTERS


class ResponsesReading(ForwardedReading):
    """Of /responses. Nothing is kept: the items of other tools than functions are the upstream's own."""

    def __init__(self) -> None:
        self.tokens: TokenCounts | None = None
        self.finish_reasons: list[str] = []
        self.finished = False

    def event(self, data: bytes) -> bool:
        # Only the last event has figures; the others are many.
        if b'"response.' not in data or any(name in data for name in _LAST_OF_RESPONSES):
            event = decoded(data) if data else {}
            if event.get("type") == "error":
                raise UpstreamError(str(event.get("message") or "The upstream failed."))
            if event.get("type") in _LAST_TYPES and isinstance(event.get("response"), dict):
                self._end(event["response"])
        return True

    def body(self, body: bytes) -> None:
        self._end(decoded(body))

    def completion(self, *, seconds: float) -> CachedCompletion | None:
        return None

    def _end(self, response: dict[str, Any]) -> None:
        usage = response.get("usage")
        self.tokens = None if usage is None else tokens_of(usage)
        self.finish_reasons = [str(response.get("status"))]
        self.finished = True


class BodyReading(ForwardedReading):
    """Of replies that are never streamed nor kept.

    Args:
        tokens: what they took that say nothing of it.
    """

    def __init__(self, tokens: TokenCounts | None = None) -> None:
        self.tokens = tokens
        self.finish_reasons: list[str] = []
        self.finished = False

    def event(self, data: bytes) -> bool:
        raise UpstreamError("The upstream streams what has no stream.")

    def body(self, body: bytes) -> None:
        usage = decoded(body).get("usage")
        if usage is not None:
            # Nothing is generated, and usage figures of such replies have nothing of it.
            self.tokens = msgspec.structs.replace(tokens_of(usage), completion=0)
        self.finished = True

    def completion(self, *, seconds: float) -> CachedCompletion | None:
        return None


def tokens_of(usage: dict[str, Any]) -> TokenCounts:
    """Usage figures of either API. Anthropic's leave cached tokens out of the prompt's."""
    if not isinstance(usage, dict):
        return TokenCounts()
    prompt = count_of(usage.get("prompt_tokens", usage.get("input_tokens")))
    completion = count_of(usage.get("completion_tokens", usage.get("output_tokens")))
    if "cache_read_input_tokens" in usage:
        cached = count_of(usage["cache_read_input_tokens"])
        written = count_of(usage.get("cache_creation_input_tokens"))
        return TokenCounts(
            None if prompt is None else prompt + (cached or 0) + (written or 0), cached, completion
        )
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or usage
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return TokenCounts(prompt, count_of(cached), completion)


def tokens_in(body: bytes) -> TokenCounts | None:
    """Of a reply that was kept, whichever API's it is."""
    usage = decoded(body).get("usage")
    return None if usage is None else tokens_of(usage)


def decoded(data: bytes) -> dict[str, Any]:
    """Raises UpstreamError unless it is a JSON object."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamError(f"The upstream sent what is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise UpstreamError("The upstream sent JSON that is no object.")
    return value


def _choices_in(chunk: dict[str, Any]) -> list[dict[str, Any]] | None:
    choices = chunk.get("choices")
    if choices is not None:
        if not isinstance(choices, list):
            raise UpstreamError("The upstream sent choices that are no list.")
        for choice in choices:
            if not isinstance(choice, dict):
                raise UpstreamError("The upstream sent a choice that is no object.")
    return choices


def _gather(into: dict[str, Any], piece: dict[str, Any], levels: int = MAX_LEVELS) -> int:
    """Adds a piece of a choice to what there is of it; the number of characters that came.

    Raises AttributeError or TypeError where the two do not go together.
    """
    if not levels:
        raise TypeError("nested too deeply to be put together")
    size = 0
    for name, value in piece.items():
        if value is None or name in ("index", "finish_reason"):
            continue
        if name == "delta":
            size += _gather(into.setdefault("message", {}), value, levels - 1)
        elif isinstance(value, str):
            # A role or an id comes once, or is repeated; texts come in pieces.
            if name in ("role", "id", "type", "name"):
                into[name] = value
            else:
                into.setdefault(name, []).append(value)
                size += len(value)
        elif isinstance(value, dict):
            size += _gather(into.setdefault(name, {}), value, levels - 1)
        elif isinstance(value, list):
            size += _gather_list(into, name, value, levels - 1)
        else:
            into[name] = value
    return size


def _gather_list(into: dict[str, Any], name: str, items: list[Any], levels: int) -> int:
    """Items that carry an index (tool calls) are gathered each by its own; others follow one another."""
    size = 0
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("index"), int):
            by_index = into.setdefault(name, {})
            size += _gather(by_index.setdefault(item["index"], {}), item, levels)
        else:
            into.setdefault(name, _Whole()).append(item)
            size += 64
    return size


class _Whole(list[Any]):
    """Items that came as they are, unlike the pieces of a text."""


def _joined(value: Any) -> Any:
    """What was gathered, as a body has it."""
    if isinstance(value, _Whole):
        return list(value)
    if isinstance(value, list):
        return "".join(value)
    if isinstance(value, dict):
        if value and all(isinstance(key, int) for key in value):
            return [_joined(value[key]) for key in sorted(value)]
        return {key: _joined(item) for key, item in value.items()}
    return value


def _can_be_replayed(choice: dict[str, Any]) -> bool:
    """It has what replay.py takes apart."""
    if not isinstance(choice.get("index"), int):
        return False
    if "message" not in choice:
        return isinstance(choice.get("text"), str)
    message = choice["message"]
    calls = message.get("tool_calls") if isinstance(message, dict) else 0
    return calls is None or (isinstance(calls, list) and all(isinstance(call, dict) for call in calls))


def _text_of(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    text = choice.get("text") if message is None else message.get("content")
    return text if isinstance(text, str) else ""
