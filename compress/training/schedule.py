"""How long training goes on, and how the learning rate goes up and down meanwhile."""

from dataclasses import dataclass

# A step that took longer was stopped, or its machine slept: it counts as this.
GAP_SECONDS = 600.0
# Shares of the budget. A trapezoid (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed
# Training Durations") instead of a cosine: the built-in model learnt most while the rate fell to zero, however long before.
WARMUP, FLAT_UNTIL = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class Budget:
    """Steps, or minutes of training time: one of them."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        assert (self.steps is None) != (self.minutes is None)

    def progress(self, step: int, seconds: float) -> float:
        """From 0 to 1, when the budget is spent."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, seconds / (60 * self.minutes))


def rate_at(progress: float) -> float:
    """The share of the full learning rate: up, flat, and down to zero at progress 1."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.02)
    if progress < FLAT_UNTIL:
        return 1.0
    return (1.0 - progress) / (1.0 - FLAT_UNTIL)
