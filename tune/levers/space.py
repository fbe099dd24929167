"""The levers there are, the choices of each, and a point: one choice of each lever. Measures nothing."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from typing import Any

# Of each lever, the number of its choice.
Point = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Attributes:
    settings: of the settings file, tables too.
    """

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lever:
    """Attributes:
    choices: the first is that of the server which all others are compared with.
    """

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Space:
    """All there is to choose from; a lever with one choice is a setting that stays."""

    levers: tuple[Lever, ...]

    @property
    def baseline(self) -> Point:
        return (0,) * len(self.levers)

    @property
    def size(self) -> int:
        return prod(len(lever.choices) for lever in self.levers)

    def settings(self, point: Point) -> dict[str, Any]:
        chosen = (lever.choices[number].settings for lever, number in zip(self.levers, point, strict=True))
        return reduce(_merged, chosen, {})

    def described(self, point: Point) -> dict[str, str]:
        """The choices' names by those of their levers."""
        return {
            lever.name: lever.choices[number].name for lever, number in zip(self.levers, point, strict=True)
        }

    def named(self, point: Point) -> str:
        """What is not as in the baseline."""
        changed = [
            lever.choices[number].name for lever, number in zip(self.levers, point, strict=True) if number
        ]
        return " + ".join(changed) or "baseline"

    def alone(self) -> Iterator[Point]:
        """Every choice with all else as in the baseline."""
        for place, lever in enumerate(self.levers):
            for number in range(1, len(lever.choices)):
                yield (*self.baseline[:place], number, *self.baseline[place + 1 :])

    def all(self) -> Iterator[Point]:
        return product(*(range(len(lever.choices)) for lever in self.levers))

    def drawn(self, rng: random.Random) -> Point:
        return tuple(rng.randrange(len(lever.choices)) for lever in self.levers)


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of the same name become one."""
    both = {
        name: _merged(one[name], value) if isinstance(value, Mapping) and name in one else value
        for name, value in other.items()
    }
    return {**one, **both}
