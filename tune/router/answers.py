"""What a tier answered, as it is kept, and how it is read from replies of OpenAI's API. Asks nobody.

Lists of log-probabilities are rounded: they are most of what is kept.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...errors import TuneError
from ...proxy.routing.learned import Evidence
from ...proxy.routing.learned.features import TOP

_DIGITS = 4


class Answer(msgspec.Struct, frozen=True):
    """Attributes:
    question: its place in the workload.
    kind: whose it is, as `collect` numbers them.
    text: None where the tier refused the question, with `refusal` saying why.
    chosen, best: as `Evidence` has them; empty where they were not asked for, or not given.
    seconds: until all of it was there; `alone`: nothing else was asked meanwhile.
    """

    question: int
    kind: int
    text: str | None
    refusal: str = ""
    finished: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    alone: bool = False
    chosen: tuple[float, ...] = ()
    best: tuple[tuple[float, ...], ...] = ()

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.prompt_tokens, self.chosen, self.best, self.finished)


class AnswersFile:
    """Answers in a JSONL file, each kept as it comes; a line that was torn when a run was killed is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        kept = msgspec.json.decode(b"[" + b",".join(content[:whole].splitlines()) + b"]", type=list[Answer])
        self.answers = {(answer.question, answer.kind): answer for answer in kept}

    def keep(self, answer: Answer) -> None:
        self.answers[answer.question, answer.kind] = answer
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(answer) + b"\n")


def logprobs_asked(path: str) -> dict[str, Any]:
    """The parameters by which chat and completions give log-probabilities."""
    return {"logprobs": TOP} if path == "/v1/completions" else {"logprobs": True, "top_logprobs": TOP}


def read_reply(reply: Mapping[str, Any], who: str) -> dict[str, Any]:
    """The fields of an `Answer` that a reply of `who` tells.

    Raises TuneError where it has no usage, hence no cost.
    """
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    if "completion_tokens" not in usage:
        raise TuneError(f"{who} does not say how many tokens its answers have: what they cost is not known.")
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    chosen, best = _logprobs(choice.get("logprobs") or {})
    return {
        "text": text or "",
        "finished": choice["finish_reason"] == "stop",
        "prompt_tokens": usage.get("prompt_tokens", 0),
        "completion_tokens": usage["completion_tokens"],
        "chosen": tuple(chosen),
        "best": tuple(best),
    }


def _logprobs(given: Mapping[str, Any]) -> tuple[list[float], list[tuple[float, ...]]]:
    if given.get("content"):
        tokens = given["content"]
        tops: Iterable[list[float]] = (
            [top["logprob"] for top in t.get("top_logprobs") or ()] for t in tokens
        )
        return [round(token["logprob"], _DIGITS) for token in tokens], [*map(_best, tops)]
    # What completions give: None of the first token of an echoed prompt, which is not asked for.
    chosen = [round(value, _DIGITS) for value in given.get("token_logprobs") or ()]
    return chosen, [_best(list(top.values())) for top in given.get("top_logprobs") or ()]


def _best(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in sorted(values, reverse=True)[:TOP])
