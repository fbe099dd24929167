"""A judge reads its file, says what it would do and why, and refuses what it was not made for."""

import math

import msgspec
import pytest

from penstock.errors import ConfigError
from penstock.proxy.routing.learned import Evidence, Judge, Promise, Question
from penstock.proxy.routing.learned.features import Inputs
from penstock.proxy.routing.learned.router_file import FORMAT, RouterFile, Ruling, Threshold

QUESTION = Question("How do I list files?")
SURE = Evidence(12, [-0.01] * 6, [[-0.01, -5.0]] * 6, finished=True)
UNSURE = Evidence(12, [-0.01, -3.0, -0.5], [[-0.01, -5.0], [-0.9, -1.0], [-0.5, -1.2]], finished=True)


def ruling(*features, buffer_tokens=0, **changes):
    """The score is the sum of the features; it is a log-odds; 0.9 is promised from 0 on, and 0.99 never."""
    width = Inputs(features, changes.get("word_buckets", 0), changes.get("vector_width", 0)).width
    points = [-4.0, -2.0, 0.0, 2.0, 4.0]
    return Ruling(
        buffer_tokens=buffer_tokens,
        inputs=Inputs(features, **changes),
        means=(0.0,) * width,
        scales=(1.0,) * width,
        weights=(1.0,) * width,
        offset=0.5,
        scores=tuple(points),
        probabilities=tuple(1 / (1 + math.exp(-x)) for x in points),
        thresholds=(Threshold(0.9, 0.0, 0.5, 1, 100), Threshold(0.99, None, 0.0, 0, 100)),
    )


@pytest.fixture
def load(tmp_path):
    def load(*cascade, predictive=None, **changes):
        found = RouterFile(FORMAT, "small", "large", "matcher", 0.05, cascade, predictive, **changes)
        (tmp_path / "router.json").write_bytes(msgspec.json.encode(found))
        return Judge.load(tmp_path / "router.json")

    return load


def test_a_sure_answer_is_kept_and_an_unsure_one_is_not(load):
    judge = load(ruling("lowest_logprob"))
    kept, refused = judge.keeps(QUESTION, SURE, 0.9), judge.keeps(QUESTION, UNSURE, 0.9)
    assert kept.accept and not refused.accept
    assert kept.probability > kept.needed == refused.needed == 0.5 > refused.probability
    assert refused.reasons == ("lowest_logprob",)


def test_what_it_promises_is_what_it_keeps_by(load):
    judge = load(ruling("lowest_logprob"))
    assert judge.promise(quality=0.9) == judge.promise() == Promise(quality=0.9, needed=0.5)
    assert judge.keeps(QUESTION, SURE).needed == 0.5


def test_what_is_far_from_all_that_was_seen_does_not_outweigh_the_rest(load):
    """A question ten times as long as any, of a kind that hardly varied in length."""
    lengths, logprob = "question_length", "lowest_logprob"
    narrow = msgspec.structs.replace(
        ruling(lengths, logprob), means=(3.0, -1.0), scales=(0.01, 0.1), weights=(-1.0, 1.0), offset=0.0
    )
    judge = load(narrow)
    long = Question("a" * 1000)
    assert judge.keeps(long, SURE).probability == judge.keeps(Question("a" * 100), SURE).probability == 0.5
    assert not judge.keeps(long, UNSURE).accept


def test_a_promise_that_cannot_be_kept_escalates_always(load):
    verdict = load(ruling("lowest_logprob")).keeps(QUESTION, SURE, 0.99)
    assert not verdict.accept and verdict.needed > 1 and verdict.reasons == ("no_threshold",)


def test_by_default_the_strictest_promise_that_can_be_kept_holds(load):
    judge = load(ruling("lowest_logprob"))
    assert judge.keeps(QUESTION, SURE) == judge.keeps(QUESTION, SURE, 0.9)
    assert judge.check(small="small", large="large") == 0.9


def test_more_tokens_than_are_judged_change_nothing(load):
    judge = load(ruling("mean_logprob", "answer_length", "finished", buffer_tokens=2))
    two, ended = (
        Evidence(12, UNSURE.chosen[:2], UNSURE.best[:2], finished=finished) for finished in (False, True)
    )
    assert judge.keeps(QUESTION, UNSURE, buffer_tokens=2) == judge.keeps(QUESTION, two, buffer_tokens=2)
    # With the last token that is waited for, it need not be known yet whether it was the last of all.
    assert judge.keeps(QUESTION, ended, buffer_tokens=2) == judge.keeps(QUESTION, two, buffer_tokens=2)


def test_an_answer_without_log_probabilities_is_escalated(load):
    judge = load(ruling("lowest_logprob"))
    verdict = judge.keeps(QUESTION, Evidence(12, [], [], finished=True), 0.9)
    assert not verdict.accept and verdict.needed == 0.5 and verdict.reasons == ("no_logprobs",)


def test_a_question_is_judged_by_its_words_and_vector(load):
    judge = load(predictive=ruling("question_mark", word_buckets=8, vector_width=2))
    assert judge.picks(QUESTION).reasons == ("no_embedding",)
    assert judge.picks(Question(QUESTION.text, [3.0, 0.0])).accept
    low = judge.picks(Question(QUESTION.text, [-9.0, 0.0]))
    assert not low.accept and low.reasons[0] == "meaning"


def test_impossible_tokens_and_missing_alternatives_give_numbers(load):
    names = ("sum_logprob", "mean_entropy", "highest_entropy", "lowest_margin")
    judge = load(ruling(*names))
    for chosen, best in (([-math.inf, -9999.0], [[-math.inf], []]), ([-1.0], [])):
        assert 0 <= judge.keeps(QUESTION, Evidence(1, chosen, best, finished=True)).probability <= 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"large": "other"}, "made for the tiers 'small' and 'large', not 'small' and 'other'"),
        ({"quality": 0.95}, "thresholds for 0.9, 0.99"),
        ({"quality": 0.99}, "no threshold that keeps the promise 0.99"),
        ({"buffer_tokens": 16}, "--buffer-tokens 16"),
        ({"predictive": True}, 'policy = "cascade"'),
    ],
)
def test_what_it_was_not_made_for_is_refused(load, asked, message):
    judge = load(ruling("mean_logprob"))
    judge.check(small="small", large="large", quality=0.9)
    with pytest.raises(ConfigError, match=message):
        judge.check(**{"small": "small", "large": "large", **asked})


def test_a_file_that_judges_no_answers_serves_no_cascade(load):
    judge = load(predictive=ruling("question_mark"))
    judge.check(small="small", large="large", predictive=True)
    with pytest.raises(ConfigError, match='policy = "predictive"'):
        judge.check(small="small", large="large")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"nonsense", "no router file"),
        (b'{"format": 9, "new": 1}', "format 9, and this version of Penstock reads format 1"),
        (b'{"format": 1}', "no router file"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, message):
    file = tmp_path / "router.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as refused:
        Judge.load(file)
    assert "penstock tune router" in refused.value.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ()}, "not as many means, scales and weights"),
        ({"scales": (0.0,)}, "a scale is not above 0"),
        ({"inputs": Inputs(("mood",))}, "it looks at 'mood', which is not known here"),
        ({"scores": (1.0,)}, "not as many scores as probabilities"),
        ({"scores": (4.0, 2.0, 0.0, -2.0, -4.0)}, "do not rise"),
        ({"thresholds": ()}, "has no thresholds"),
    ],
)
def test_a_file_that_a_judge_would_trip_over_is_refused(load, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(msgspec.structs.replace(ruling("mean_logprob"), **changes))


def test_a_judge_of_questions_that_looks_at_answers_is_refused(load):
    with pytest.raises(ConfigError, match="looks at answers"):
        load(predictive=ruling("mean_logprob"))
