"""The policy on streams of near hits made by chance."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from penstock.cache.trust.bound import lower
from penstock.cache.trust.calibration import fewest_labels
from penstock.cache.trust.features import Features
from penstock.cache.trust.policy import Observation, Reason, TrustPolicy


def near_hit(generator: random.Random, entry: int | None = None, cosine: float | None = None) -> Observation:
    cosine = generator.uniform(0.7, 1.0) if cosine is None else cosine
    likeness = [generator.random() for _ in range(3)]
    numbers = (cosine, -math.log(1.02 - cosine), *likeness, 1.0, 1.0, 0.2, generator.random())
    return Observation(generator.getrandbits(64) if entry is None else entry, Features(numbers))


def always(rate: float) -> Callable[[Observation, int], float]:
    return lambda observation, number: rate


@dataclass
class Served:
    hits: int = 0
    wrong: int = 0
    first: int | None = None
    last: int | None = None


def send(
    policy: TrustPolicy,
    error: Callable[[Observation, int], float],
    requests: int,
    generator: random.Random,
    begin: int = 0,
) -> Served:
    served = Served()
    for number in range(begin, begin + requests):
        observation = near_hit(generator)
        same = generator.random() >= error(observation, number)
        decision = policy.decide(observation, generator.random())
        if decision.serve:
            served.hits += 1
            served.wrong += not same
            served.first = number if served.first is None else served.first
            served.last = number
        else:
            policy.learn(decision, same, float(number))
            if policy.refit_due:
                policy.refit()
    return served


def test_nothing_is_served_cold():
    policy = TrustPolicy()
    policy.refit()
    decision = policy.decide(near_hit(random.Random(0), cosine=1.0), 0.99)
    assert not decision.serve and not decision.explore
    assert decision.reason is Reason.COLD


@pytest.mark.parametrize("rate", [0.03, 0.01, 0.005])
def test_what_is_always_right_is_served_after_as_many_labels_as_the_bound_implies(rate):
    policy, needed = TrustPolicy(rate), fewest_labels(rate, 0.95)
    served = send(policy, always(0.0), needed + 1000, random.Random(1))
    assert served.first is not None and needed <= served.first <= needed + 100
    # Of what comes then only exploration and the lowest scores are left to the model.
    assert served.hits > 500
    assert fewest_labels(0.01, 0.95) == 408


def test_what_is_wrong_too_often_is_never_served():
    assert send(TrustPolicy(0.01), always(0.05), 6000, random.Random(2)).hits == 0


def test_a_loose_bound_allows_what_a_tight_one_does_not():
    hits = [send(TrustPolicy(rate), always(0.01), 3000, random.Random(3)).hits for rate in (0.005, 0.05)]
    assert hits[0] == 0 < hits[1]


def test_the_error_among_hits_stays_under_the_bound():
    """Random streams: errors fall with the cosine, to a rate under or over the bound."""
    hits = wrong = violated = 0
    for seed in range(8):
        generator = random.Random(seed)
        steep, middle = generator.uniform(30, 150), generator.uniform(0.75, 0.9)
        least = generator.choice([0.0, 0.003, 0.01, 0.03])

        def error(
            observation: Observation, number: int, s: float = steep, m: float = middle, e: float = least
        ) -> float:
            return e + (1 - e) / (1 + math.exp(s * (observation.features.numbers[0] - m)))

        served = send(TrustPolicy(0.02), error, 5000, generator)
        hits, wrong = hits + served.hits, wrong + served.wrong
        violated += lower(served.wrong, served.hits, 0.95) > 0.02
    assert hits > 4000, "too few to say anything"
    assert wrong <= 0.02 * hits
    assert violated <= 1


def test_a_drift_is_noticed_and_forgotten():
    policy, generator = TrustPolicy(0.03), random.Random(5)
    before = send(policy, always(0.0), 3000, generator)
    during = send(policy, always(0.5), 2000, generator, begin=3000)
    after = send(policy, always(0.0), 4000, generator, begin=5000)
    assert before.hits > 1500
    # Explored failures tighten at once: else the clean labels before would outweigh the first hundred.
    assert during.hits < 300
    assert during.last is not None and during.last < 3600
    assert after.hits > 0


def test_a_poisoned_entry_is_stopped_by_its_first_failure():
    policy, generator = TrustPolicy(0.03), random.Random(6)
    send(policy, always(0.0), 2000, generator)
    poisoned = near_hit(generator, entry=7, cosine=0.97)
    decision = policy.decide(poisoned, 0.0)
    assert decision.explore, "it looks as good as all the others"
    policy.learn(decision, False, 2000.0)
    policy.refit()
    assert policy.decide(near_hit(generator, entry=7, cosine=0.96), 0.99).reason is Reason.CONTRADICTED
    others = [policy.decide(near_hit(generator, cosine=0.97), 0.99).serve for _ in range(100)]
    assert sum(others) > 60


def test_words_that_turn_the_answer_are_learned():
    """Two words alike in every number: answers change when 11 differs, never when 22 does."""
    policy, generator = TrustPolicy(0.03), random.Random(7)
    for number in range(3000):
        word = generator.choice([11, 22])
        observation = near_hit(generator)
        observation = Observation(observation.entry, Features(observation.features.numbers, (word,)))
        decision = policy.decide(observation, generator.random())
        if not decision.serve:
            policy.learn(decision, word == 22, float(number))
            if policy.refit_due:
                policy.refit()
    plain = near_hit(generator, cosine=0.9)
    harmless, harmful = (Observation(1, Features(plain.features.numbers, (word,))) for word in (22, 11))
    assert policy.decide(harmless, 0.99).serve
    assert not policy.decide(harmful, 0.99).serve


def test_explored_hits_are_few_but_never_none():
    policy, generator = TrustPolicy(0.03), random.Random(8)
    send(policy, always(0.0), 3000, generator)
    assert 0.02 <= policy.exploration <= 0.25
    explored = [policy.decide(near_hit(generator, cosine=0.98), generator.random()) for _ in range(1000)]
    assert 0 < sum(decision.explore for decision in explored) < 400
    assert not any(decision.explore and decision.serve for decision in explored)


def test_where_nothing_may_be_served_every_label_stands_for_itself():
    policy, generator = TrustPolicy(0.03), random.Random(13)
    send(policy, always(0.0), 2000, generator)
    good = near_hit(generator, cosine=0.98)
    explored, drafted = policy.decide(good, 0.0), policy.decide(good, 0.0, may_serve=False)
    assert explored.reason is Reason.EXPLORED and explored.standing_for >= 4
    assert drafted.reason is Reason.SERVABLE and drafted.standing_for == 1
    assert not drafted.serve and not drafted.explore
    assert policy.decide(good, 0.99, may_serve=False) == drafted, "there is no chance in it"
    policy.learn(drafted, False, 2000.0)
    assert not policy.decide(near_hit(generator, cosine=0.9), 0.99).serve, "a failure is one all the same"


def test_the_log_is_the_state():
    policy, generator = TrustPolicy(0.03), random.Random(9)
    send(policy, always(0.001), 2000, generator)
    policy.refit()
    restarted = TrustPolicy(0.03)
    restarted.fold(policy.pack())
    restarted.refit()
    assert restarted.calibration == policy.calibration
    for _ in range(100):
        observation = near_hit(generator)
        assert restarted.decide(observation, 0.5) == policy.decide(observation, 0.5)


def test_two_workers_that_exchange_rows_come_to_the_same():
    workers, generator = [TrustPolicy(0.03), TrustPolicy(0.03)], random.Random(10)
    logs = [b"", b""]
    for number in range(1200):
        worker = number % 2
        decision = workers[worker].decide(near_hit(generator), 0.0)
        logs[worker] += workers[worker].learn(decision, generator.random() > 0.02, float(number))
    workers[0].fold(logs[1])
    workers[1].fold(logs[0] + logs[1])  # its own again: no harm
    for worker in workers:
        worker.refit()
    assert workers[0].calibration == workers[1].calibration
    assert workers[0].pack() == workers[1].pack()
    assert len(workers[0].pack()) == len(logs[0] + logs[1])


def test_bytes_that_are_no_rows_are_no_evidence():
    policy, generator = TrustPolicy(), random.Random(12)
    label = policy.learn(policy.decide(near_hit(generator), 0.0), True, 1.0)
    policy.fold(b"\0" * 61)
    assert policy.pack() == label


def test_the_log_is_bounded_and_keeps_what_is_near_the_threshold_longer():
    policy, generator = TrustPolicy(0.05), random.Random(11)

    def falling(observation: Observation, number: int) -> float:
        return 0.0 if observation.features.numbers[0] > 0.9 else 0.9

    send(policy, falling, 12_000, generator)
    rows = len(policy.pack()) // 88
    assert rows <= policy.capacity + 300
    # Two in three near hits are far; they may fill a quarter of the log.
    policy.refit()
    assert policy.calibration.labels > fewest_labels(0.05, 0.95)


@pytest.mark.parametrize("values", [(0.0, 0.95), (0.5, 0.95), (0.01, 1.0), (0.01, 0.2)])
def test_bounds_that_mean_nothing_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        TrustPolicy(*values)


def test_labels_of_another_version_are_no_evidence():
    policy, generator = TrustPolicy(), random.Random(14)
    label = bytearray(policy.learn(policy.decide(near_hit(generator), 0.0), True, 1.0))
    label[17] += 1
    other = TrustPolicy()
    other.fold(bytes(label))
    assert other.pack() == b""
    other.fold(bytes(label) + policy.pack())
    assert other.pack() == policy.pack()
