"""Speeds are compared within a round, whatever the machine does between rounds."""

import math
import random
import weakref
from functools import partial

import pytest

from penstock.compress.evaluate.speed import measure_one_at_a_time, measure_speeds, median


def test_what_slows_the_machine_slows_all_alike() -> None:
    clock = random.Random(0)
    machine = 1.0
    order: list[str] = []

    def model(name: str, rate: float):
        def decode(batch: int) -> float:
            nonlocal machine
            if len(order) % 2 == 0:  # a round's first
                machine = clock.uniform(0.2, 1)
            order.append(name)
            return machine * rate * batch

        return decode

    speeds = measure_speeds({"a": model("a", 100), "b": model("b", 150)}, batches=[4], rounds=9)
    (a,), (b,) = speeds["a"], speeds["b"]
    assert a.batch == 4 and a.ratio.value == a.ratio.low == 1
    assert b.ratio.low == pytest.approx(1.5) == b.ratio.high
    assert a.tokens_per_second.high > 1.5 * a.tokens_per_second.low
    assert len(order) == 20 and order[:4] == ["a", "b", "b", "a"], "each is first in turn"
    assert b.ratio.count == 9, "the round that warms up is not counted"


def test_one_at_a_time_a_machine_that_slows_down_slows_all_alike() -> None:
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    order: list[str] = []

    class Model:
        def __init__(self, name: str, rate: float) -> None:
            assert not alive, "the one before is still in memory"
            alive.add(self)
            order.append(name)
            self.rate = rate

        def __call__(self, batch: int) -> float:
            order.append("timed")
            return self.rate * batch / (1 + 0.001 * len(order))

    rates = {"a": 100.0, "b": 150.0}
    speeds = measure_one_at_a_time(
        {name: partial(Model, name, rate) for name, rate in rates.items()}, batches=[1, 4], rounds=8
    )
    assert [name for name in order if name != "timed"] == ["a", "b", "a"]
    assert [len(one) for one in speeds.values()] == [2, 2]
    for speed in speeds["b"]:
        assert speed.ratio.value == pytest.approx(1.5, rel=0.01) and speed.ratio.count == 8
    assert speeds["a"][0].ratio.value == 1


def test_the_interval_of_a_median_holds_it_as_often_as_said() -> None:
    """Of a skewed distribution, whose median is known."""
    rng = random.Random(1)
    held = 0
    for _ in range(1000):
        found = median([rng.expovariate(1) for _ in range(9)])
        held += found.low <= math.log(2) <= found.high
    assert 945 <= held <= 985  # exactly 96.1 %
    assert (median([1, 2, 3]).low, median([1, 2, 3]).high) == (1, 3)
