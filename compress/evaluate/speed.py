"""How fast models decode beside each other, on a machine that is not the same from one second to the next.

Every round times all of them, each time another one first, so that what slows the machine down slows all alike; what
counts is each round's ratio to the first model, and the median of those.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .estimate import LOW, Estimate

BATCHES = (1, 16)
ROUNDS = 9
# Sequences decoded at a time -> tokens per second of all of them together.
Decode = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one model at one batch size.

    Attributes:
        tokens_per_second: median over the rounds.
        ratio: median of this model's over the first one's in the same round.
    """

    batch: int
    tokens_per_second: Estimate
    ratio: Estimate


def measure_speeds(
    models: Mapping[str, Decode],
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, list[Speed]]:
    """The speeds of each model by its name. The first round is not counted: caches are cold, and threads asleep."""
    names = list(models)
    seen = _nothing_yet(names, batches)
    for number in range(rounds + 1):
        turn = number % len(names)
        for batch in batches:
            for name in names[turn:] + names[:turn]:
                rate = models[name](batch)
                if number:
                    seen[batch][name].append(rate)
        progress(number + 1, rounds + 1)
    return _speeds(seen)


def measure_one_at_a_time(
    models: Mapping[str, Callable[[], Decode]],
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, list[Speed]]:
    """As `measure_speeds`, where memory is for one model: each is made to be timed, and gone before the next is made.

    The first half of the rounds goes through the models forwards, the other backwards: what makes the machine slower and
    slower does so for each model in one half. What comes and goes within a round is not made up for.
    """
    names = list(models)
    seen = _nothing_yet(names, batches)
    made, decode = "", None
    halves = [(names, rounds - rounds // 2), (names[::-1], rounds // 2)]
    turns = [(name, count) for order, count in halves for name in order]
    for number, (name, count) in enumerate(turns):
        if name != made:
            decode = None  # not both at once
            decode, made = models[name](), name
        assert decode is not None
        for timed in range(count + 1):  # the first is not counted, as in `measure_speeds`
            for batch in batches:
                rate = decode(batch)
                if timed:
                    seen[batch][name].append(rate)
        progress(number + 1, len(turns))
    return _speeds(seen)


def _nothing_yet(names: Sequence[str], batches: Sequence[int]) -> dict[int, dict[str, list[float]]]:
    return {batch: {name: [] for name in names} for batch in batches}


def _speeds(seen: Mapping[int, Mapping[str, list[float]]]) -> dict[str, list[Speed]]:
    names = list(next(iter(seen.values())))
    return {name: [_speed(batch, seen[batch], name, names[0]) for batch in seen] for name in names}


def _speed(batch: int, rates: Mapping[str, list[float]], name: str, first: str) -> Speed:
    ratios = [mine / theirs for mine, theirs in zip(rates[name], rates[first], strict=True)]
    return Speed(batch, median(rates[name]), median(ratios))


def median(values: Sequence[float]) -> Estimate:
    """With the interval between two order statistics that is sure, whatever the distribution: half of all values lie on
    either side of the true median. With fewer than six values it is all they span, and less than 95 % sure."""
    ordered, count = sorted(values), len(values)
    left_out, tail = 0, 0.0
    for k in range(count // 2):
        tail += math.comb(count, k) / 2**count  # the chance that at most k of them lie on one side
        if tail > LOW:
            break
        left_out = k
    return Estimate(statistics.median(ordered), ordered[left_out], ordered[count - 1 - left_out], count)
