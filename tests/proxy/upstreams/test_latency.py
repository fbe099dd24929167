"""From when on a first token is late."""

from penstock.proxy.upstreams.latency import LEAST, MOST_HEDGED, WINDOW, Latencies


def test_nothing_is_late_before_enough_is_known_or_without_a_percentile() -> None:
    latencies, never = Latencies(0.9), Latencies(None)
    for number in range(LEAST - 1):
        latencies.add(number)
    assert latencies.late is None
    latencies.add(1.0)
    assert latencies.late is not None
    for _ in range(WINDOW):
        never.add(1.0)
    assert never.late is None


def test_it_is_the_percentile_of_the_last_ones() -> None:
    latencies = Latencies(0.9)
    for _ in range(1000):
        latencies.add(50.0)
    for number in range(WINDOW):
        latencies.add(float(number))
    assert latencies.late == 0.9 * WINDOW


def test_no_more_than_a_share_is_asked_twice() -> None:
    latencies = Latencies(0.5)
    for _ in range(LEAST):
        latencies.add(1.0)
    twice = 0
    for _ in range(1000):
        again = latencies.late is not None
        twice += again
        latencies.asked(twice=again)
    assert 50 <= twice <= 1000 * MOST_HEDGED + 15  # before the share is reached, all are
