"""The stream of an answer with more in it than text: thoughts and tool calls as OpenAI's clients expect their deltas."""

from collections.abc import Callable

import orjson

from ..errors import PenstockError
from ..scheduler.outputs import Chunk
from .answer import AnswerReader, Layout, Part, new_call_id
from .errors import body_of
from .sse import DONE, event, one_line
from .usage import Usage


class AnswerStream:
    """One response's stream; as StreamFormat, which is for text alone and faster.

    Args:
        head: the constant fields of every chunk.
        layout: what the answers may consist of.
        logprobs: a chunk's log-probabilities; None when the request wants none. They are those of all tokens, whatever part
            they belong to, and come with the last event of their chunk.
        include_usage: every chunk carries `usage: null`, and one more at the end the figures.
    """

    def __init__(
        self,
        head: dict[str, object],
        layout: Layout,
        *,
        logprobs: Callable[[Chunk], dict[str, object]] | None,
        include_usage: bool,
    ) -> None:
        self._head = {**head, "object": "chat.completion.chunk"}
        self._layout = layout
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._readers: dict[int, AnswerReader] = {}

    def chunks(self, batch: list[Chunk]) -> bytes:
        """The events of everything one engine step delivered; empty when there is nothing to show yet."""
        return b"".join([self._chunk(chunk) for chunk in batch])

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        return event(orjson.dumps({**self._head, "choices": [], "usage": usage.as_dict()})) + DONE

    def failed(self, error: PenstockError) -> bytes:
        return event(body_of(error))

    def _chunk(self, chunk: Chunk) -> bytes:
        deltas: list[dict[str, object]] = []
        reader = self._readers.get(chunk.index)
        if reader is None:
            reader = self._readers[chunk.index] = AnswerReader(self._layout)
            deltas.append({"role": "assistant", "content": None})
        parts = reader.read(chunk.text)
        finish_reason: str | None = chunk.finish_reason
        if finish_reason is not None:
            parts += reader.end()
        deltas += [delta_of(part) for part in parts]
        if finish_reason is not None:
            deltas.append({})
            finish_reason = reader.reason(finish_reason)
        logprobs = self._logprobs(chunk) if self._logprobs is not None and chunk.logprobs else None
        if logprobs is not None and not deltas:
            deltas.append({})
        last = len(deltas) - 1
        return b"".join(
            self._event(
                {
                    "index": chunk.index,
                    "delta": delta,
                    "logprobs": logprobs if place == last else None,
                    "finish_reason": finish_reason if place == last else None,
                }
            )
            for place, delta in enumerate(deltas)
        )

    def _event(self, choice: dict[str, object]) -> bytes:
        whole: dict[str, object] = {**self._head, "choices": [choice]}
        if self._include_usage:
            whole["usage"] = None
        return event(one_line(orjson.dumps(whole)))


def delta_of(part: Part) -> dict[str, object]:
    if part.kind == "content":
        return {"content": part.text}
    if part.kind == "reasoning":
        return {"reasoning_content": part.text}
    if part.kind == "arguments":
        return {"tool_calls": [{"index": part.call, "function": {"arguments": part.text}}]}
    called = {"name": part.text, "arguments": ""}
    return {"tool_calls": [{"index": part.call, "id": new_call_id(), "type": "function", "function": called}]}
