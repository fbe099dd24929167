"""What the table of peers says, from samples to ratios."""

import pytest
from peers.table import Sample, markdown, median, ratio

MEDIANS = {
    "ours": {"concurrent16_tok_s": 300.0, "ttft_1024_ms": 900.0, "cold_start_s": 2.0},
    "slow": {"concurrent16_tok_s": 100.0, "ttft_1024_ms": 3000.0},
    "fast": {"concurrent16_tok_s": 400.0, "ttft_1024_ms": 600.0},
}
TITLES = {"ours": "Ours 1", "slow": "Slow 2", "fast": "Fast 3"}


def test_the_median_is_of_the_samples_that_nobody_disturbed():
    samples = [Sample(10.0, 0.0), Sample(2.0, 1.5), Sample(30.0, 0.1), Sample(20.0, 0.02)]
    assert median(samples) == 20.0
    assert median(samples[:3]) == 20.0


def test_where_all_were_disturbed_the_median_is_of_all():
    assert median([Sample(1.0, 0.9), Sample(5.0, 0.2), Sample(2.0, 0.3)]) == 2.0


def test_without_a_sample_there_is_no_median():
    with pytest.raises(ValueError, match="no sample"):
        median([])


def test_a_ratio_is_to_the_best_peer_and_above_one_where_we_are_better():
    assert ratio("concurrent16_tok_s", MEDIANS, "ours") == 300 / 400
    assert ratio("ttft_1024_ms", MEDIANS, "ours") == 600 / 900
    assert ratio("ttft_1024_ms", MEDIANS, "fast") == 900 / 600


def test_there_is_no_ratio_without_a_peer_or_without_us():
    assert ratio("cold_start_s", MEDIANS, "ours") is None
    assert ratio("cold_start_s", MEDIANS, "fast") is None


def test_the_table_names_what_is_missing_and_marks_what_was_disturbed():
    missing = {"slow, cold_start": "ended while loading: no room"}
    lines = markdown(MEDIANS, TITLES, missing, frozenset({("fast", "ttft_1024_ms")})).splitlines()
    assert lines[0] == "| | Ours 1 | Slow 2 | Fast 3 | ours / best peer |"
    assert "| 16 concurrent 128 + 128, tok/s | 300 | 100 | 400 | 0.75x |" in lines
    assert "| TTFT at 1,024 tokens, ms | 900 | 3000 | 600\\* | 0.67x |" in lines
    assert "| cold start to first token, s | 2 | - | - | - |" in lines
    assert lines[-1] == "- slow, cold_start: ended while loading: no room"
    assert not any("single stream" in line for line in lines)
