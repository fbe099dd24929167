"""Rows are split so that nothing held back is known in other words."""

from simulated_tiers import SimulatedTiers

from penstock.proxy.routing.learned import Question
from penstock.tune.router.rows import CALIBRATE, FIT, Row, groups_of, outcomes_of, split


def rows_of(groups):
    evidence = SimulatedTiers(0).rows(1)[0].evidence
    return [
        Row(group, Question(f"{group} {place}"), evidence, True, True, 0.2, 1.0, 1.0)
        for place, group in enumerate(groups)
    ]


def test_groups_stay_together_and_one_row_of_each_sets_thresholds():
    rows = rows_of([f"kind {place % 200}" for place in range(1000)])
    parts = split(rows, seed=0)
    fit, calibrate, test = ({row.group for row in part} for part in (parts.fit, parts.calibrate, parts.test))
    assert not fit & calibrate and not fit & test and not calibrate & test
    assert len(fit | calibrate | test) == 200
    assert len(parts.calibrate) == len(calibrate)
    assert len(parts.fit) == 5 * len(fit) and len(parts.test) == 5 * len(test)
    for part, share in ((fit, FIT), (calibrate, CALIBRATE)):
        assert abs(len(part) / 200 - share) < 0.1


def test_the_split_goes_by_the_seed_and_not_by_the_order():
    rows = rows_of([f"kind {place}" for place in range(300)])
    parts = split(rows, seed=0)
    assert {*map(id, split(rows[::-1], seed=0).fit)} == {*map(id, parts.fit)}
    assert {*map(id, split(rows, seed=1).fit)} != {*map(id, parts.fit)}


def test_questions_that_differ_in_words_only_are_of_one_group():
    assert len({*groups_of(["How do I list files?", "how do i LIST files", "remove a folder"])}) == 2


def test_questions_that_differ_in_numbers_only_are_each_their_own():
    sums = [f"What is {place} + {place + 1}?" for place in range(40)]
    assert groups_of(sums) == sums


def test_wordings_of_one_topic_are_of_one_group():
    asked = ["How do I list files?", "What is in this folder?", "Remove a folder", "remove A folder"]
    one, same, other, alike = groups_of(asked, ["files", "files", None, None])
    assert one == same != other == alike
    assert groups_of(asked, [None] * 4) == groups_of(asked)


def test_groups_are_numbered_from_nought():
    assert outcomes_of(rows_of(["b", "a", "b"])).groups.tolist() == [0, 1, 0]
