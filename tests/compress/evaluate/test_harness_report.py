"""Scores of lm-evaluation-harness as a table: intervals where the samples are known, none where they are not."""

import math

import pytest

from penstock.compress.evaluate.harness_report import HarnessReport, as_dict, scores, tables


def results(right: list[int], bleu: float) -> dict:
    """As `simple_evaluate` returns them, of the keys that are read."""
    samples = [
        {"filter": "strict", "acc": float(one), "bleu": ("a", "b"), "metrics": ["acc"]} for one in right
    ]
    samples += [{"filter": "lax", "acc": 1.0, "f1": 0.25 * (number % 3)} for number in range(len(right))]
    f1 = sum(0.25 * (number % 3) for number in range(len(right))) / len(right)
    return {
        "results": {
            "sums": {
                "alias": "sums",
                "sample_len": len(right),
                "acc,strict": sum(right) / len(right),
                "acc_stderr,strict": 0.1,
                "f1,lax": f1,
                "bleu,none": bleu,
                "bleu_stderr,none": "N/A",
            },
            "group": {"alias": "group", "acc,none": 0.5},
        },
        "samples": {"sums": samples},
        "higher_is_better": {"sums": {"acc": True, "bleu": False}},
    }


def test_a_table_with_intervals_and_what_changed():
    one, other = scores(results([1, 1, 0, 0], 12.0)), scores(results([1, 1, 1, 0], 13.5))
    assert list(one) == ["sums: acc (strict)", "sums: f1 (lax)", "sums: bleu", "group: acc"]
    report = HarnessReport(
        "a machine", {"sums": 5}, {"one": "bfloat16", "other": "w8a8"}, {"one": one, "other": other}
    )
    machine, _, precisions, shots, _, head, _, acc, f1, bleu, group = tables(report)
    assert (machine, precisions) == ("a machine", "one: bfloat16; other: w8a8")
    assert shots == "examples before each question: sums 5"
    assert [cell.strip() for cell in head.split("|")][1:-1] == ["", "one", "other", "beside one"]
    cells = [[cell.strip() for cell in line.split("|")][1:-1] for line in (acc, f1, bleu, group)]
    assert cells[0] == [
        "sums: acc (strict) ↑",
        "0.5000 [0.1500, 0.8500]",
        "0.7500 [0.3006, 0.9544]",
        "+0.2500 [-0.3832, +0.7165]",
    ]
    assert cells[1][0] == "sums: f1 (lax)" and cells[1][3] == "+0.0000 [+0.0000, +0.0000]"
    assert cells[2] == ["sums: bleu ↓", "12", "13.5", ""]
    assert cells[3] == ["group: acc", "0.5", "0.5", ""]
    plain = as_dict(report)["scores"]["other"]
    assert plain["sums: acc (strict)"]["estimate"]["value"] == 0.75
    assert plain["sums: bleu"]["estimate"] is None


def test_of_shares_the_interval_is_wilsons_of_other_numbers_the_normal_one():
    found = scores(results([1] * 9 + [0] * 3, 1.0))
    assert found["sums: acc (strict)"].estimate.low == pytest.approx(0.4677, abs=1e-4)
    f1 = found["sums: f1 (lax)"].estimate
    deviation = math.sqrt(sum((0.25 * (n % 3) - 0.25) ** 2 for n in range(12)) / 11)
    assert f1.high - f1.value == pytest.approx(1.959964 * deviation / math.sqrt(12))
