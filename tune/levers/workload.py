"""The requests of a workload in their order, repeated as they come: what repeats is what a cache lives from."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from ..asked import Asked

if TYPE_CHECKING:
    from ...compress.evaluate.matchers import Matcher

BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Request(Asked):
    """Attributes:
    matcher: tells a right answer.
    """

    matcher: "Matcher"

    @property
    def topic(self) -> str:
        """The same of requests that ask the same, be it in other words."""
        return self.key if self.asked.topic is None else self.asked.topic

    @property
    def key(self) -> str:
        """The same of requests that ask the same."""
        return json.dumps(self.body, sort_keys=True)


def read_requests(file: Path) -> list[Request]:
    """Of a file as `penstock eval models --tasks` takes it. Raises CompressError naming the line that is wrong."""
    from ...compress.evaluate.tasks import read_tasks  # loads torch

    return [Request(task.example, task.matcher) for task in read_tasks(file)]


def longest_prompt(requests: Sequence[Request]) -> int:
    """In tokens, by estimate."""
    return max(len(request.key.encode()) for request in requests) // BYTES_PER_TOKEN


def part_of(requests: Sequence[Request], count: int, seed: int) -> list[int]:
    """The places of about `count` requests, or all: whole topics drawn by chance with all their repetitions.

    A beginning of the workload would have fewer repetitions than all of it, and a cache would seem worth less. Of more
    requests, the part contains that of fewer.
    """
    if count >= len(requests):
        return list(range(len(requests)))
    topics: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        topics.setdefault(request.topic, []).append(place)
    order = list(topics.values())
    random.Random(seed).shuffle(order)
    found: list[int] = []
    for places in order:
        if len(found) >= count:
            break
        found += places
    return sorted(found)


def fingerprint(file: Path) -> str:
    return xxhash.xxh3_128_hexdigest(file.read_bytes())
