"""Admission by the most KV that will be held: nobody is preempted, and room is not wasted."""

import random

import pytest
from played_scheduler import Machine

from penstock.scheduler.peak_kv import peak_blocks


def load(machine: Machine, rng: random.Random, count: int) -> None:
    for _ in range(count):
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, 20))]
        machine.add(prompt, max_tokens=rng.randint(1, 30))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_nobody_is_preempted(seed: int, prefix_caching: bool):
    preemptions = []
    for trusting in (True, False):
        rng = random.Random(seed)
        machine = Machine(20, 4, 8, 12, prefix_caching=prefix_caching, trust_max_tokens=trusting)
        for _ in range(6):
            load(machine, rng, 5)
            for _ in range(10):
                if machine.scheduler.has_work():
                    machine.step()
                    machine.check()
        machine.drain()
        machine.check_baseline()
        preemptions.append(machine.scheduler.num_preemptions)
    assert preemptions[0] == 0 < preemptions[1]


def test_the_bound_is_of_the_moments_when_one_ends():
    """Two that grow by 10 and 2: the short one is gone before the long one is long."""
    machine = Machine(40, 1, 8, 64)
    long, short = machine.add([1] * 3, max_tokens=11), machine.add([2] * 5, max_tokens=3)
    machine.step()
    assert (long.num_output_tokens, short.num_output_tokens) == (1, 1)
    # When the short one ends both have 2 more, 6 and 8 tokens; when the long one does it has 14.
    assert peak_blocks([long, short], 1) == 14
    assert peak_blocks([long], 1) == 14 and peak_blocks([short], 1) == 8
    late = machine.add([3] * 4, max_tokens=6)
    assert peak_blocks([long, short, late], 1) == 24


def test_the_bound_holds_at_every_step():
    rng = random.Random(3)
    for _ in range(30):
        machine = Machine(400, 3, 16, 256)
        load(machine, rng, 10)
        machine.step()
        bound = peak_blocks(machine.live, 3)
        while machine.scheduler.has_work():
            assert machine.manager.num_used_blocks <= bound
            machine.step()


def test_one_that_fills_the_pool_alone_is_served():
    machine = Machine(10, 4, 8, 12, trust_max_tokens=True)
    machine.add([1] * 30, max_tokens=10)
    machine.add([1] * 30, max_tokens=10)
    machine.drain()
    machine.check_baseline()
