"""A clock for engines whose steps must not depend on how busy the machine is."""


class SteadyClock:
    """Every look takes a step's time, so that a step of any size takes as long as another."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now
