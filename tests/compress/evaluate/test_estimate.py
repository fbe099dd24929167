"""Intervals are as wide as theory says, where there is one."""

import pytest
import torch

from penstock.compress.evaluate.estimate import interval, resampled_totals, share


def test_a_bootstrap_of_means_is_as_wide_as_the_normal_theory_says():
    draws = 3 + 2 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    resampled = resampled_totals(torch.cat([draws, torch.ones_like(draws)], 1))
    found = interval(float(draws.mean()), resampled[:, 0] / resampled[:, 1], 400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * float(draws.std()) / 20, rel=0.1)
    assert found.low < 3 < found.high


def test_tokens_of_one_text_are_not_taken_as_independent():
    """Ten texts of 100 equal tokens are ten observations, not a thousand."""
    values = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    texts = torch.stack([100 * values, torch.full_like(values, 100)], 1)
    tokens = torch.stack([values.repeat_interleave(100), torch.ones(1000, dtype=torch.double)], 1)

    def width(sums):
        totals = resampled_totals(sums)
        found = interval(0.0, totals[:, 0] / totals[:, 1], 1000)
        return found.high - found.low

    assert width(texts) > 5 * width(tokens)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433), (500, 1000, 0.4691, 0.5309)],
)
def test_shares_have_wilsons_interval(successes, count, low, high):
    """Figures of Wilson's interval as published for these counts."""
    found = share(successes, count)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert found.value == successes / count
