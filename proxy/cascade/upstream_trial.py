"""A trial of an upstream's answer: it is asked for log-probabilities, which the client gets only where it asked for them.

What is kept of it is kept apart from other answers of the upstream: it has been judged.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from ...cache import CachedCompletion
from ...errors import PenstockError, UnsupportedParameterError
from ..routing.learned import Evidence
from ..routing.target import RemoteTarget
from ..sse import event as as_event
from ..sse import one_line
from ..upstreams.events import data_of
from ..upstreams.reading import Reading, TokenCounts, decoded
from ..upstreams.remote_api import RemoteApi
from .attempt import Guess
from .trial import TOP, Trial

if TYPE_CHECKING:
    from ..answering import Asked

# Of a prompt whose tokens the upstream has not told yet.
_BYTES_PER_TOKEN = 4
_CHAT = "/chat/completions"


def judged_api(api: RemoteApi, trial: Trial) -> RemoteApi:
    """The same API with answers judged by `trial`.

    Raises UnsupportedParameterError for one whose answers have no log-probabilities.
    """
    if api.path != _CHAT:
        raise UnsupportedParameterError(f"Answers of {api.path} cannot be judged.", param="model")

    def fields(asked: "Asked") -> dict[str, Any]:
        given = asked.fields if api.fields is None else api.fields(asked)
        return {**given, "logprobs": True, "top_logprobs": max(_shown(given) or 0, TOP)}

    def reading(asked: "Asked", target: RemoteTarget, keep: bool, own_usage: bool) -> Reading:
        inner = api.reading(asked, target, keep, own_usage)
        # What speaks another API tells of no log-probabilities by itself.
        shown = _shown(asked.fields) if api.fields is None else None
        return _JudgedReading(inner, trial, shown, len(asked.body) // _BYTES_PER_TOKEN)

    return msgspec.structs.replace(
        api, name=f"{api.name} judged by {trial.identity}", fields=fields, reading=reading
    )


def _shown(fields: Mapping[str, Any]) -> int | None:
    """So many alternatives are asked for; None: no log-probabilities at all."""
    most = fields.get("top_logprobs")
    return (most if isinstance(most, int) else 0) if fields.get("logprobs") is True else None


class _JudgedReading:
    """A Reading (reading.py) that shows nothing until it is decided.

    Args:
        inner: what is read of the answer as the client gets it.
        shown: alternatives that the client asked for; None: no log-probabilities.
        prompt_tokens: by estimate.
    """

    def __init__(self, inner: Reading, trial: Trial, shown: int | None, prompt_tokens: int) -> None:
        self.tokens: TokenCounts | None = None
        self.finish_reasons: list[str] = []
        self._inner, self._trial = inner, trial
        self._shown = shown
        self._prompt_tokens = prompt_tokens
        self._chosen: list[float] = []
        self._best: list[list[float]] = []
        self._stopped = False
        self._text = ""
        self._held = b""
        self._is_decided = False

    @property
    def finished(self) -> bool:
        return self._inner.finished

    def shown(self, event: bytes) -> bytes:
        data = data_of(event)
        if data and data != b"[DONE]":
            chunk = decoded(data)
            self._take(chunk, "delta")
            event = as_event(one_line(orjson.dumps(chunk)))
        self._held += self._inner.shown(event)
        self._note_figures()
        if not self._is_decided and data != b"[DONE]" and not self._trial.is_due(len(self._chosen)):
            return b""
        self._decide()
        return self._taken()

    def end(self) -> bytes:
        self._decide()
        end = self._inner.end()
        self._note_figures()
        return self._taken() + end

    def whole(self, body: bytes) -> bytes:
        reply = decoded(body)
        self._take(reply, "message")
        shown = self._inner.whole(orjson.dumps(reply))
        self._note_figures()
        self._decide()
        self._taken()
        return shown

    def failed(self, error: PenstockError) -> bytes:
        return self._inner.failed(error)

    def completion(self, *, seconds: float) -> CachedCompletion | None:
        return self._inner.completion(seconds=seconds) if self._is_decided else None

    def _decide(self) -> None:
        """Raises EscalatedError."""
        if self._is_decided:
            return
        told = None if self.tokens is None else self.tokens.prompt
        prompt = self._prompt_tokens if told is None else told
        evidence = Evidence(prompt, self._chosen, self._best, self._stopped)
        self._trial.decide(evidence, Guess(self._text))
        self._is_decided = True

    def _note_figures(self) -> None:
        self.tokens, self.finish_reasons = self._inner.tokens, self._inner.finish_reasons

    def _taken(self) -> bytes:
        self._trial.said = self._text
        held, self._held = self._held, b""
        return held

    def _take(self, reply: dict[str, Any], said: str) -> None:
        """Reads a chunk or a body, and takes out of it what was not asked for. What is of another form is not touched."""
        for choice in reply.get("choices") or ():
            if not isinstance(choice, dict):
                continue
            self._stopped = self._stopped or choice.get("finish_reason") in ("stop", "tool_calls")
            message = choice.get(said)
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                self._text += message["content"]
            logprobs = choice.get("logprobs")
            content = logprobs.get("content") if isinstance(logprobs, dict) else None
            for token in content if isinstance(content, list) else ():
                self._note(token)
            if self._shown is None:
                choice["logprobs"] = None

    def _note(self, token: object) -> None:
        if not isinstance(token, dict) or not isinstance(token.get("logprob"), int | float):
            return
        tops = token.get("top_logprobs")
        best = [top for top in tops if isinstance(top, dict)] if isinstance(tops, list) else []
        self._chosen.append(float(token["logprob"]))
        self._best.append([float(top.get("logprob") or 0.0) for top in best[:TOP]])
        if self._shown is not None and isinstance(tops, list):
            token["top_logprobs"] = tops[: self._shown]
