"""The last day's sums, of which hours that are over are read once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.proxy.dashboard.day import HOURS, Day
from penstock.proxy.tenants.environment import StoreError
from penstock.proxy.tenants.tenants import TenantStore
from penstock.proxy.tenants.totals import HOUR, Place, Row, Total

NOW_HOUR = 1000
TOKENS = sum(range(NOW_HOUR - HOURS + 1, NOW_HOUR + 1))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TenantStore]:
    store = TenantStore(tmp_path / "tenants")
    for hour in range(NOW_HOUR - HOURS, NOW_HOUR + 1):
        # As many tokens as tell the hours apart.
        store.totals.add({Place(hour, "acme", "m", "miss"): Total(completion_tokens=hour)}, hour * HOUR)
    yield store
    store.close()


def test_a_day_is_the_hour_that_runs_and_those_before_it(store: TenantStore) -> None:
    day = Day(store.totals, lambda: NOW_HOUR * HOUR + 60.0)
    assert [day.savings().total.completion_tokens for _ in range(2)] == [TOKENS] * 2


def test_hours_that_could_not_be_read_are_read_the_next_time(
    store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [(NOW_HOUR - 1) * HOUR + 60.0]
    day = Day(store.totals, lambda: now[0])
    day.savings()
    now[0] += HOUR

    def failing(_since: float) -> list[Row]:
        raise StoreError("the disk is away")

    with monkeypatch.context() as away:
        away.setattr(store.totals, "rows", failing)
        with pytest.raises(StoreError):
            day.savings()
    assert day.savings().total.completion_tokens == TOKENS
