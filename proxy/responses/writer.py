"""An answer as the events of a Responses stream.

What is constant of an item's deltas is encoded when it begins; a delta then costs one string encoding and a join, as in
sse.py.
"""

import time
from collections.abc import Callable
from typing import Any

import orjson

from ...errors import PenstockError
from ..answer import Part, new_call_id
from ..answer_writer import Finish
from ..sse import json_string, one_line
from ..usage import Usage
from .response import Item, Output, ended_response

_DELTA = {
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
}


class ResponseWriter:
    """An AnswerWriter.

    Args:
        head: the response's fields that are known before its answer (`head_of`).
        call_ids: makes the id of a call.
        clock: Unix seconds.
    """

    def __init__(
        self,
        head: dict[str, Any],
        *,
        call_ids: Callable[[], str] = new_call_id,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._head = head
        self._output = Output(head["id"], call_ids)
        self._clock = clock
        self._number = 0
        self._begun = False
        self._opening = self._closing = b""
        self._logprobs: list[dict[str, Any]] = []  # of what comes next

    def begin(self) -> bytes:
        self._begun = True
        response = orjson.Fragment(orjson.dumps(self._response("in_progress", [])))
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def note_logprobs(self, logprobs: list[dict[str, Any]]) -> None:
        """Those of the text that is written next. For answers that are a message and nothing else."""
        self._logprobs += logprobs

    def parts(self, parts: list[Part]) -> bytes:
        written = []
        for part in parts:
            if self._output.begins(part):
                written.append(self._close() + self._open(self._output.begin_with(part)))
            if part.kind != "name":
                written.append(self._delta(part.text))
        return b"".join(written)

    def end(self, finish: Finish, usage: Usage) -> bytes:
        written = b"" if self._output.items else self._open(self._output.begin("message"))
        if self._logprobs:
            written += self._delta("")
        output = self._output.ended(finish)
        written += self._close(output[-1])
        response = ended_response(self._head, output, finish, usage, now=int(self._clock()))
        return written + self._event(f"response.{response['status']}", response=response)

    def failed(self, error: PenstockError) -> bytes:
        written = b"" if self._begun else self.begin()
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = self._response("failed", [item.as_dict("incomplete") for item in self._output.items])
        response["error"] = {"code": code, "message": error.message}
        written += self._event("response.failed", response=response)
        # OpenAI's clients raise what stands in `error`; the fields beside it are those of the API's description.
        told = {"message": error.message, "param": error.param, "code": error.code or code}
        return written + self._event("error", **told, error={"type": error.type, **told})

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        unknown = dict.fromkeys(("completed_at", "error", "incomplete_details", "usage"))
        return {**self._head, "status": status, **unknown, "output": output}

    def _open(self, item: Item) -> bytes:
        place = len(self._output.items) - 1
        at: dict[str, Any] = {"item_id": item.id, "output_index": place}
        written = self._event(
            "response.output_item.added", output_index=place, item=item.as_dict("in_progress")
        )
        if item.kind != "function_call":
            at["content_index"] = 0
            written += self._event("response.content_part.added", **at, part=item.part)
        name = f"{_DELTA[item.kind]}.delta".encode()
        self._opening = b'event: %b\ndata: {"type":"%b","sequence_number":' % (name, name)
        self._middle = b"," + orjson.dumps(at)[1:-1] + b',"delta":'
        self._closing = b',"logprobs":[]}\n\n' if item.kind == "message" else b"}\n\n"
        return written

    def _delta(self, text: str) -> bytes:
        self._output.items[-1].texts.append(text)
        number = self._number
        self._number += 1
        closing = self._closing if not self._logprobs else self._closing_with_logprobs()
        return b"".join((self._opening, b"%d" % number, self._middle, json_string(text), closing))

    def _closing_with_logprobs(self) -> bytes:
        logprobs, self._logprobs = self._logprobs, []
        self._output.items[-1].logprobs += logprobs
        return b',"logprobs":' + one_line(orjson.dumps(logprobs)) + b"}\n\n"

    def _close(self, ended: dict[str, Any] | None = None) -> bytes:
        """The end of the last item. `ended`: as it is then; None for a whole one."""
        if not self._output.items:
            return b""
        item, place = self._output.items[-1], len(self._output.items) - 1
        at: dict[str, Any] = {"item_id": item.id, "output_index": place}
        if item.kind == "function_call":
            written = self._event(f"{_DELTA[item.kind]}.done", **at, arguments=item.text)
        else:
            at["content_index"] = 0
            extra = {"logprobs": item.logprobs} if item.kind == "message" else {}
            written = self._event(f"{_DELTA[item.kind]}.done", **at, text=item.text, **extra)
            written += self._event("response.content_part.done", **at, part=item.part)
        return written + self._event(
            "response.output_item.done", output_index=place, item=ended or item.as_dict("completed")
        )

    def _event(self, name: str, **fields: object) -> bytes:
        data = orjson.dumps({"type": name, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (name.encode(), one_line(data))
