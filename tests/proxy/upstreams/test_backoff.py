"""How long to wait before asking again."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.proxy.upstreams.backoff import FIRST_SECONDS, MOST_SECONDS, backoff, retry_after

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)


@given(attempt=st.integers(0, 2000), draw=st.floats(0, 1, exclude_max=True))
def test_pauses_grow_to_a_limit_and_differ(attempt: int, draw: float) -> None:
    if attempt > 1000:
        attempt %= 1000
    pause = backoff(attempt, draw)
    most = min(FIRST_SECONDS * 2.0**attempt, MOST_SECONDS)
    assert most / 2 <= pause <= most


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("-3", 0.0),
        ("0", 0.0),
        ("2.5", 2.5),
        (" 7 ", 7.0),
        ("Thu, 26 Nov 2026 12:01:00 GMT", 60.0),
        ("Thu, 26 Nov 2026 11:00:00 GMT", 0.0),
        ("Thu, 26 Nov 2026 12:01:00 -0000", 60.0),
        ("Thursday, 26-Nov-26 12:01:00 GMT", 60.0),
        ("Thu, 99 Nov 2026 12:01:00 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.text())
def test_no_header_is_too_odd(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or 0 <= seconds < float("inf")
