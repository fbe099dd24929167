"""Exact binomial bounds (Clopper and Pearson, Biometrika 26, 1934), without scipy. Knows nothing of caches."""

import math
from collections.abc import Callable


def tail(wrong: int, labels: int, rate: float) -> float:
    """Probability of at most `wrong` among `labels`, each wrong by itself with probability `rate`."""
    if wrong >= labels or rate <= 0:
        return 1.0
    if rate >= 1:
        return 0.0
    log_odds = math.log(rate) - math.log1p(-rate)
    term = labels * math.log1p(-rate)
    total = math.exp(term)
    for k in range(1, wrong + 1):
        term += math.log(labels - k + 1) - math.log(k) + log_odds
        total += math.exp(term)
    return min(total, 1.0)


def tail_of_share(wrong: float, labels: float, rate: float) -> float:
    """`tail` for the effective counts of weighted labels, which are no whole numbers: between its neighbours."""
    whole, part = math.floor(wrong), wrong - math.floor(wrong)
    below, above = (tail(k, math.floor(labels), rate) for k in (whole, whole + 1))
    return float(below ** (1 - part) * above**part)


def upper(wrong: int, labels: int, confidence: float) -> float:
    """The rate that `wrong` among `labels` exclude to be exceeded, one-sided. 1.0 without labels."""
    if wrong >= labels:
        return 1.0
    return _bisect(lambda rate: tail(wrong, labels, rate) > 1 - confidence)


def lower(wrong: int, labels: int, confidence: float) -> float:
    """The rate that is exceeded, one-sided. 0.0 when nothing was wrong."""
    if wrong == 0:
        return 0.0
    return _bisect(lambda rate: 1 - tail(wrong - 1, labels, rate) < 1 - confidence)


def clean_labels_needed(rate: float, confidence: float) -> int:
    """Labels in a row without a wrong one before `rate` is certain: 299 for 1 % at confidence 0.95."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-rate))


def _bisect(below: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if below(middle):
            low = middle
        else:
            high = middle
    return high
