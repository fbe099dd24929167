"""What answers take of the machine, by asking a server that serves them and nothing else: started for it, and ended.

Each time it is a fresh one: another has the prompts computed already, and would seem faster than it is.
"""

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from ..levers.replay import Request, replay
from ..levers.settings_file import toml
from ..own_server import own_server
from ..router.collect import Progress
from ..router.workload import Item
from .stages import Stages


class Run(msgspec.Struct, frozen=True):
    """Attributes:
    seconds: from the first request to the last answer.
    texts, models: of each answer, and who gave it.
    """

    seconds: float
    texts: list[str]
    models: list[str]


@dataclass(frozen=True, slots=True)
class Asking:
    """How: most tokens of an answer, requests at a time, and how often all is asked."""

    max_tokens: int
    concurrency: int
    repeats: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings to serve with, and what is asked of them."""

    settings: Mapping[str, Any]
    model: str
    requests: Sequence[Request]


@dataclass(frozen=True, slots=True)
class Drafted:
    """A question with what the answer may be, as a cascade hands it over."""

    item: Item
    draft: str

    @property
    def path(self) -> str:
        return self.item.path

    @property
    def body(self) -> dict[str, Any]:
        return {**self.item.body, "prediction": {"type": "content", "content": self.draft}}


@contextmanager
def served(settings: Mapping[str, Any]) -> Iterator[str]:
    """The address of a server with these settings. Raises TuneError where it does not come up."""
    with tempfile.TemporaryDirectory(prefix="penstock-flywheel-") as folder:
        file = Path(folder, "penstock.toml")
        file.write_text(toml(settings), encoding="utf-8")
        with own_server(["--config", str(file), "--host", "127.0.0.1"]) as url:
            yield url


def timed(
    candidates: Mapping[str, Candidate], asking: Asking, stages: Stages, progress: Progress
) -> dict[str, list[Run]]:
    """By their names; each in turn, round after round, so that a machine that slows down slows down all of them.

    Raises TuneError where one does not come up, or refuses a question.
    """
    found: dict[str, list[Run]] = {name: [] for name in candidates}
    for repeat in range(asking.repeats):
        for number, (name, candidate) in enumerate(candidates.items()):
            progress("servers timed", repeat * len(candidates) + number, asking.repeats * len(candidates))
            found[name].append(stages.once(f"{name}.{repeat}", Run, lambda c=candidate: _run(c, asking)))  # type: ignore[misc]
    return found


def seconds_of(runs: Sequence[Run]) -> float:
    return median(run.seconds for run in runs)


def spread_of(runs: Sequence[Run]) -> float:
    """How far repeats lie apart, as a share of the middle one."""
    seconds = [run.seconds for run in runs]
    return (max(seconds) - min(seconds)) / median(seconds)


def _run(candidate: Candidate, asking: Asking) -> Run:
    with served(candidate.settings) as url:
        found = asyncio.run(
            replay(
                url,
                candidate.requests,
                concurrency=asking.concurrency,
                max_tokens=asking.max_tokens,
                model=candidate.model,
            )
        )
    return Run(found.seconds, found.texts, found.models)
