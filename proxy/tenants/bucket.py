"""A token bucket of one minute's worth, as the amount that is missing from it: it refills all the time, and a debt counts.

What is missing, not what is left, so that a changed limit holds at once for what was taken before.
"""

import math

# A wait that was sat out to the last bit must be enough, whatever the rounding.
_ROUNDING = 1e-9


def refilled(missing: float, per_minute: int | None, seconds: float) -> float:
    """What is missing after `seconds`. An open limit misses nothing."""
    return 0.0 if per_minute is None else max(0.0, missing - per_minute * seconds / 60)


def wait_for(amount: float, missing: float, per_minute: int | None) -> float | None:
    """Seconds until `amount` can be taken, 0 when it can be now; None when it never fits."""
    if per_minute is None:
        return 0.0
    if amount > per_minute:
        return None
    lacking = missing + amount - per_minute
    return 0.0 if lacking <= _ROUNDING else lacking * 60 / per_minute


def left(missing: float, per_minute: int) -> int:
    return max(0, math.floor(per_minute - missing + _ROUNDING))


def seconds_to_full(missing: float, per_minute: int) -> float:
    return missing * 60 / per_minute
