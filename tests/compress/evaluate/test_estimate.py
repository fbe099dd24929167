"""Intervals are as wide as theory says, where there is one."""

import pytest
import torch

from penstock.compress.evaluate.estimate import by_topic, effective_count, interval, resampled_totals, share


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


def test_a_topic_is_one_observation_as_far_as_its_wordings_go_together():
    draw = torch.Generator().manual_seed(0)
    topics = by_topic([str(number // 10) for number in range(1000)])
    alone = (torch.rand(1000, generator=draw) < 0.3).double()
    together = (torch.rand(100, generator=draw) < 0.3).double().repeat_interleave(10)
    half = torch.where(torch.rand(1000, generator=draw) < 0.5, alone, together)
    assert effective_count(together, topics) == pytest.approx(100, rel=0.02)
    assert effective_count(alone, topics) > 700
    assert 150 < effective_count(half, topics) < 600
    assert effective_count(torch.ones(1000), topics) == 100, "nothing shows that wordings differ"
    assert effective_count(alone, by_topic([None] * 1000)) == pytest.approx(1000)
    assert effective_count(alone, by_topic(["one"] * 1000)) == pytest.approx(1000), (
        "its wordings are what varies"
    )


def test_intervals_over_topics_are_those_of_the_bootstrap():
    """Topics of one to twenty wordings, of which some are easy and others not."""
    draw = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 21, (300,), generator=draw)
    easy = torch.rand(300, generator=draw).repeat_interleave(sizes)
    right = (torch.rand(len(easy), generator=draw) < easy).double()
    topics = by_topic([str(number) for number in torch.arange(300).repeat_interleave(sizes).tolist()])
    sums = torch.zeros(300, 2, dtype=torch.double)
    sums.index_add_(0, topics, torch.stack([right, torch.ones_like(right)], 1))
    resampled = resampled_totals(sums)
    expected = interval(float(right.mean()), resampled[:, 0] / resampled[:, 1], len(right))
    found = share(int(right.sum()), len(right), effective_count(right, topics))
    assert found.low == pytest.approx(expected.low, abs=0.006)
    assert found.high == pytest.approx(expected.high, abs=0.006)
    plain = share(int(right.sum()), len(right))
    assert found.high - found.low > 1.5 * (plain.high - plain.low)
