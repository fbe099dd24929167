"""Both models' answers to the router's questions, as many as there is time for; and which of them timings are taken of."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from ...errors import TuneError
from ..router.answers import Answer, AnswersFile
from ..router.collect import LARGE, SMALL, Progress, Tier, collect
from ..router.workload import Item

# Asked before the time is looked at; and as many as a router needs in any case.
_STEP, _FEWEST = 100, 140

Answers = Mapping[tuple[int, int], Answer]


class Asked(msgspec.Struct, frozen=True):
    """Attributes:
    questions: so many, the first ones, are answered by both.
    seconds: that a question took, of both together.
    """

    questions: int
    seconds: float


def ask_both(
    tiers: tuple[Tier, Tier],
    items: Sequence[Item],
    file: Path,
    *,
    seconds: float,
    max_tokens: int,
    concurrency: int,
    progress: Progress,
) -> Asked:
    """Keeps the answers in `file`, and asks only what is not there. Raises TuneError as `collect` does."""
    began, first = time.monotonic(), len(AnswersFile(file).answers)
    end = 0
    while end < len(items) and (end < _FEWEST or time.monotonic() - began < seconds):
        end = min(end + _STEP, len(items))
        answers = AnswersFile(file)
        asyncio.run(
            collect(
                tiers,
                items[:end],
                answers,
                max_tokens=max_tokens,
                concurrency=concurrency,
                drafts=False,
                progress=progress,
            )
        )
    fresh = len(answers.answers) - first
    return Asked(end, 2 * (time.monotonic() - began) / max(1, fresh))


def to_time(
    items: Sequence[Item], answers: Answers, same: Callable[[str, str], bool], count: int
) -> list[int]:
    """Places of so many questions that both answered: first those answered otherwise, which are what is escalated.

    Raises TuneError where there is none.
    """

    told = [
        place
        for place in range(len(items))
        if answers[place, SMALL].completion_tokens and answers[place, LARGE].completion_tokens
    ]
    if not told:
        raise TuneError(
            f"Both models answered none of the {len(items)} questions: {answers[0, SMALL].refusal}"
        )

    def says_the_same(place: int) -> bool:
        return same(answers[place, SMALL].text or "", answers[place, LARGE].text or "")

    return sorted(told, key=says_the_same)[:count]


def tokens_of(answers: Answers, places: Sequence[int], kind: int) -> int:
    """Of the answers of one model."""
    return sum(answers[place, kind].completion_tokens for place in places)
