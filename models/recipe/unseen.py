"""Keeps the questions that the models are judged by out of training.

Knows how near two questions are: the share of words they have in common. Wordings of training tasks that are nearly
one of the judges' questions are never drawn, nor searched.
"""

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

QUESTIONS = tuple(Path(__file__).parent / name for name in ("heldout.jsonl", "questions.jsonl"))
OFF_TOPIC = Path(__file__).parent / "offtopic.jsonl"
LISTS = (*QUESTIONS, OFF_TOPIC)
TOO_NEAR = 0.75  # of the words of both: one word of four to eight differs


def words_of(text: str) -> frozenset[str]:
    return frozenset(re.sub(r"[^a-z0-9 ]", "", text.lower()).split())


def nearness(question: frozenset[str], wordings: Iterable[frozenset[str]]) -> float:
    """The largest share of words (Jaccard) that a question has in common with any of `wordings`."""
    return max((len(question & w) / len(question | w) for w in wordings if question & w), default=0.0)


@cache
def judges_questions() -> tuple[frozenset[str], ...]:
    """The words of every question that models are judged by."""
    lines = [line for path in LISTS for line in path.read_text().splitlines()]
    return tuple(words_of(json.loads(line)["question"]) for line in lines)


def may_be_learnt(wording: str) -> bool:
    """Whether a training wording is far enough from all questions that models are judged by."""
    return nearness(words_of(wording), judges_questions()) <= TOO_NEAR
