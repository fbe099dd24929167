"""Which points to measure, and on how much: many on little, the better part of them on more, the best on all.

Successive halving (Jamieson & Talwalkar, AISTATS 2016). What survives is joined, each time, by points not yet measured that
are likely to be cheaper by what was seen so far: levers are mostly worth what they are worth alone, and together they
multiply. Measures nothing itself.
"""

import random
from collections.abc import Callable, Sequence

import msgspec

from .space import Point, Space
from .surrogate import Surrogate
from .trial import Loss, Trial

KEPT = 3  # one in so many goes on
# What is learnt from traffic, which near hits to trust for one, is worth nothing on a few requests.
LEAST_REQUESTS = 150
FINALISTS = 3
# Up to so many points, all are looked at when the next ones are chosen; of more, so many by chance.
LOOKED_AT = 20_000


class Limits(msgspec.Struct, frozen=True):
    """Attributes:
    loss: of right answers, as a share of all.
    first_token, last_token: seconds, of the slowest in twenty; None: any.
    cost: seconds of the machine per answer; None: any.
    """

    loss: float
    first_token: float | None = None
    last_token: float | None = None
    cost: float | None = None

    def broken(self, trial: Trial, loss: Loss) -> str:
        """By what was measured; empty where nothing is."""
        if trial.failure:
            return "could not be measured"
        if loss.value > self.loss:
            return "loses too much"
        return self.late(trial)

    def hopeless(self, trial: Trial, loss: Loss) -> bool:
        """More requests would not bring it within them."""
        return bool(trial.failure) or loss.low > self.loss or bool(self.late(trial))

    def late(self, trial: Trial) -> str:
        """Which limit but that of losses it does not keep; of those, chance changes little."""
        for limit, value, says in (
            (self.first_token, trial.first_token, "first tokens are late"),
            (self.last_token, trial.last_token, "answers are late"),
            (self.cost, trial.cost, "costs too much"),
        ):
            if limit is not None and value > limit:
                return says
        return ""


Measure = Callable[[Point, int], tuple[Trial, Loss]]


def rungs(requests: int) -> list[int]:
    """How many requests each round takes, the last all."""
    sizes = [requests]
    while sizes[0] // KEPT >= LEAST_REQUESTS:
        sizes.insert(0, sizes[0] // KEPT)
    return sizes


def search(
    space: Space, measure: Measure, limits: Limits, *, requests: int, points: int, seed: int
) -> list[tuple[Trial, Loss]]:
    """All that was measured, the last round's on all requests.

    Args:
        measure: a point, on about so many requests of the workload.
        points: to begin with; at least every choice alone is.
    """
    rng = random.Random(seed)
    pool = first_points(space, points, rng)
    seen: list[tuple[Trial, Loss]] = []
    sizes = rungs(requests)
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        round_ = [measure(point, size) for point in pool]
        seen += round_
        hopeful = [pair for pair in round_ if not limits.hopeless(*pair)]
        if following is None or not hopeful:
            break
        guess = Surrogate(
            space, measure(space.baseline, size)[0].cost, [pair for pair in seen if not pair[0].failure]
        )

        def rank(point: Point, cost: float, guess: Surrogate = guess) -> tuple[bool, float, Point]:
            return guess.loss(point) > limits.loss, cost, point

        hopeful.sort(key=lambda pair: rank(pair[0].point, pair[0].cost))
        kept = FINALISTS if following == requests else max(FINALISTS, len(round_) // KEPT)
        pool = [trial.point for trial, _ in hopeful[:kept]]
        known = {space.baseline, *pool, *(trial.point for trial, _ in seen)}
        fresh = [point for point in _candidates(space, seen, limits, rng) if point not in known]
        pool += sorted(fresh, key=lambda point: rank(point, guess.cost(point)))[: -(-kept // 2)]
    return seen


def first_points(space: Space, count: int, rng: random.Random) -> list[Point]:
    """Every choice alone, and others by chance, as far as there are so many."""
    pool = list(space.alone())
    known = {space.baseline, *pool}
    while len(pool) < count and len(known) < space.size:
        point = space.drawn(rng)
        if point not in known:
            known.add(point)
            pool.append(point)
    return pool


def _candidates(
    space: Space, seen: Sequence[tuple[Trial, Loss]], limits: Limits, rng: random.Random
) -> set[Point]:
    """Points without choices that failed alone, or were late: what one loses, chance may have exaggerated."""
    alone = set(space.alone())
    spoilt = {
        (place, number)
        for trial, _ in seen
        if trial.point in alone and (trial.failure or limits.late(trial))
        for place, number in enumerate(trial.point)
        if number
    }
    looked_at = space.all() if space.size <= LOOKED_AT else (space.drawn(rng) for _ in range(LOOKED_AT))
    return {point for point in looked_at if not spoilt.intersection(enumerate(point))}
