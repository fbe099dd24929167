import pytest

from penstock.cache.trust.bound import clean_labels_needed, lower, tail, tail_of_share, upper


def test_the_bounds_are_clopper_and_pearsons():
    # The closed form without errors, and a tabulated interval (10 of 100: 4.90 % to 17.62 %).
    assert upper(0, 299, 0.95) == pytest.approx(1 - 0.05 ** (1 / 299))
    assert (lower(10, 100, 0.975), upper(10, 100, 0.975)) == pytest.approx((0.0490, 0.1762), abs=1e-4)
    assert (lower(0, 0, 0.95), upper(0, 0, 0.95)) == (0.0, 1.0)
    assert upper(5, 5, 0.95) == 1.0


def test_one_percent_takes_three_hundred_clean_labels():
    assert clean_labels_needed(0.01, 0.95) == 299
    assert upper(0, 299, 0.95) <= 0.01 < upper(0, 298, 0.95)


def test_parts_of_labels_lie_between_whole_ones():
    assert tail_of_share(2.0, 500, 0.01) == pytest.approx(tail(2, 500, 0.01))
    assert tail(2, 500, 0.01) < tail_of_share(2.5, 500, 0.01) < tail(3, 500, 0.01)


def test_many_labels_do_not_overflow():
    assert tail(1000, 100_000, 0.01) == pytest.approx(0.51, abs=0.02)
    assert tail(10, 1_000_000, 0.05) == 0.0
