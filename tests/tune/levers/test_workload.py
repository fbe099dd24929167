"""Parts of a workload keep its repetitions; losses are counted by questions, not by requests."""

import json
from collections import Counter

import pytest

from penstock.tune.levers.trial import loss_of
from penstock.tune.levers.workload import longest_prompt, part_of, read_requests


@pytest.fixture
def requests(tmp_path):
    file = tmp_path / "tasks.jsonl"
    lines = [{"question": f"question {number * number % 50}", "accept": ["a"]} for number in range(400)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_requests(file)


def test_a_part_has_whole_questions_in_their_order(requests):
    part = part_of(requests, 100, seed=3)
    assert part == sorted(set(part)) and 100 <= len(part) < 200
    inside = {requests[place].key for place in part}
    assert all(place in set(part) for place, request in enumerate(requests) if request.key in inside)
    assert set(part) < set(part_of(requests, 250, seed=3))
    assert part_of(requests, 400, seed=3) == list(range(400))


def test_a_question_asked_often_tells_no_more_than_once(requests):
    same, right = [requests[0]] * 100, [True] * 100
    wrong = [False] * 100
    loss = loss_of(same, wrong, right)
    assert (loss.value, loss.low, loss.high) == (1.0, 1.0, 1.0)
    unchanged = loss_of(same, right, right)
    assert unchanged.value == 0 and unchanged.high == 1.0
    often = list(Counter(request.topic for request in requests).values())
    many = loss_of(requests, [True] * 400, [True] * 400)
    assert many.high == pytest.approx(3 * sum(n * n for n in often) / 400**2) and many.high > 3 / len(often)


def test_the_same_in_other_words_is_one_topic(tmp_path):
    file = tmp_path / "tasks.jsonl"
    lines = [
        {"question": f"wording {number}", "accept": ["a"], "topic": number // 20} for number in range(400)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    requests = read_requests(file)
    part = part_of(requests, 100, seed=3)
    assert len(part) == 100 and len({place // 20 for place in part}) == 5
    one = loss_of(requests[:20], [False] * 10 + [True] * 10, [True] * 20)
    assert (one.value, one.low, one.high) == (0.5, 0.5, 0.5)


def test_gains_and_losses_make_up_for_each_other(requests):
    before = [number % 2 == 0 for number in range(400)]
    after = [number % 2 == 1 for number in range(400)]
    loss = loss_of(requests, after, before)
    assert loss.value == 0 and loss.low < 0 < loss.high


def test_the_longest_prompt_is_an_estimate_in_tokens(requests):
    assert 5 < longest_prompt(requests) < 50
