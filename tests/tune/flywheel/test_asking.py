"""Both models asked for as long as there is time; what was answered is not asked again, nor a stage done again."""

import pytest
from two_tiers_server import two_tiers

from penstock.compress.texts import Example
from penstock.errors import TuneError
from penstock.tune.flywheel.asking import Asked, ask_both, to_time, tokens_of
from penstock.tune.flywheel.stages import Stages
from penstock.tune.router.answers import Answer, AnswersFile
from penstock.tune.router.collect import LARGE, SMALL, Tier
from penstock.tune.router.workload import Item


@pytest.fixture
def tiers():
    with two_tiers() as running:
        yield running


def items(count):
    return [Item(Example(messages=({"role": "user", "content": f"list {n} hard"},))) for n in range(count)]


def test_it_asks_until_time_is_over_and_goes_on_where_it_was(tiers, tmp_path):
    asked, file = items(260), tmp_path / "answers.jsonl"
    pair = Tier(tiers.url, "small"), Tier(tiers.url, "large")

    def ask(seconds):
        return ask_both(
            pair, asked, file, seconds=seconds, max_tokens=8, concurrency=8, progress=lambda *_: None
        )

    first = ask(0.0)
    assert first.questions == 200 and first.seconds > 0  # 100 are too few for a router
    assert len(AnswersFile(file).answers) == 400
    before = tiers.asked.total()
    assert ask(60.0).questions == 260
    assert tiers.asked.total() - before == 120


def test_what_is_answered_otherwise_is_timed_first():
    told = {0: ("a", "a"), 1: ("a", "b"), 2: (None, "a"), 3: ("c", "d")}
    answers = {}
    for place, texts in told.items():
        for kind, text in zip((SMALL, LARGE), texts, strict=True):
            count = 0 if text is None else 2 + kind
            answers[place, kind] = Answer(place, kind, text, "refused", completion_tokens=count)

    def same(one, other):
        return one == other

    assert to_time(items(4), answers, same, 2) == [1, 3]
    assert to_time(items(4), answers, same, 9) == [1, 3, 0]
    assert tokens_of(answers, [0, 1], SMALL) == 4 and tokens_of(answers, [0, 1], LARGE) == 6
    with pytest.raises(TuneError, match="answered none of the 1 questions: refused"):
        to_time(items(1), {(0, SMALL): answers[2, SMALL], (0, LARGE): answers[2, LARGE]}, same, 1)


def test_a_stage_that_is_done_is_not_done_again(tmp_path):
    stages = Stages(tmp_path)

    def fails():
        raise TuneError("no")

    with pytest.raises(TuneError, match="no"):
        stages.once("asked", Asked, fails)
    assert stages.once("asked", Asked, lambda: Asked(3, 0.5)) == Asked(3, 0.5)
    assert Stages(tmp_path).once("asked", Asked, fails) == Asked(3, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["asked.json"]
