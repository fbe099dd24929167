"""An answer of parts as OpenAI's chat API tells it: for upstreams of another API. (What the engine writes is told by
`answer_stream.py`, which knows choices and log-probabilities, too.)
"""

import orjson

from ..errors import PenstockError
from .answer import Part, message_of
from .answer_stream import delta_of
from .answer_writer import Finish
from .errors import body_of
from .sse import DONE, event, one_line
from .usage import Usage


class ChatWriter:
    """An AnswerWriter.

    Args:
        head: the constant fields of every chunk.
    """

    def __init__(self, head: dict[str, object], *, include_usage: bool) -> None:
        self._head = {**head, "object": "chat.completion.chunk"}
        self._include_usage = include_usage

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def parts(self, parts: list[Part]) -> bytes:
        return b"".join([self._chunk(delta_of(part), None) for part in parts])

    def end(self, finish: Finish, usage: Usage) -> bytes:
        last = self._chunk({}, finish.reason)
        if self._include_usage:
            last += event(orjson.dumps({**self._head, "choices": [], "usage": usage.as_dict()}))
        return last + DONE

    def failed(self, error: PenstockError) -> bytes:
        return event(body_of(error))

    def _chunk(self, delta: dict[str, object], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        whole: dict[str, object] = {**self._head, "choices": [choice]}
        if self._include_usage:
            whole["usage"] = None
        return event(one_line(orjson.dumps(whole)))


def chat_body(head: dict[str, object], parts: list[Part], finish: Finish, usage: Usage) -> dict[str, object]:
    choice = {"index": 0, "message": message_of(parts), "logprobs": None, "finish_reason": finish.reason}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage.as_dict()}
