"""When an upstream is left alone."""

from penstock.proxy.upstreams.breaker import CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(failures: int = 3) -> tuple[CircuitBreaker, Clock]:
    clock = Clock()
    breaker = CircuitBreaker(failures=failures, seconds=10, clock=clock)
    for _ in range(failures):
        assert breaker.wait == 0
        breaker.enter()
        breaker.failed()
    return breaker, clock


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = CircuitBreaker(failures=3, seconds=10, clock=Clock())
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        outcome()
    assert (breaker.state, breaker.wait) == ("closed", 0)
    breaker.failed()
    assert (breaker.state, breaker.wait) == ("open", 10)


def test_one_probe_at_a_time() -> None:
    breaker, clock = opened()
    clock.now += 4
    assert breaker.wait == 6
    clock.now += 6
    assert (breaker.state, breaker.wait) == ("half_open", 0)
    breaker.enter()
    assert breaker.wait == 10
    breaker.succeeded()
    assert (breaker.state, breaker.wait) == ("closed", 0)


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker, clock = opened()
    clock.now += 10
    breaker.enter()
    clock.now += 1
    breaker.failed()
    assert (breaker.state, breaker.wait) == ("open", 10)


def test_a_probe_that_is_never_heard_of_again_blocks_for_a_while_only() -> None:
    breaker, clock = opened()
    clock.now += 10
    breaker.enter()
    clock.now += 10
    assert breaker.wait == 0


def test_a_probe_whose_client_left_makes_room_for_another() -> None:
    breaker, clock = opened()
    clock.now += 10
    breaker.enter()
    breaker.left()
    assert breaker.wait == 0


def test_a_request_for_rest_is_no_failure() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=1, seconds=10, clock=clock)
    breaker.rest(30)
    breaker.rest(5)  # the longest counts
    assert (breaker.state, breaker.wait) == ("closed", 30)
    clock.now += 30
    assert breaker.wait == 0


def test_rest_and_failures_together_take_the_longer() -> None:
    breaker, clock = opened()
    breaker.rest(15)
    clock.now += 10
    assert breaker.wait == 5
