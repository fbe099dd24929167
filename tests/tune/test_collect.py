"""Answers are asked of both tiers, kept as they come, and asked once only, whatever happens in between."""

import json

import msgspec
import pytest
from two_tiers_server import RIGHT, USAGE_TOKENS, two_tiers

from penstock.errors import TuneError
from penstock.tune.router.answers import AnswersFile
from penstock.tune.router.collect import DRAFTED, LARGE, SMALL, TIMED, Tier, collect
from penstock.tune.router.rows import outcomes_of, split
from penstock.tune.router.scoring import Price, score_answers, timed_escalation, timed_prices
from penstock.tune.router.workload import read_workload


@pytest.fixture
def tiers():
    with two_tiers() as running:
        yield running


@pytest.fixture
def items(tmp_path):
    file = tmp_path / "questions.jsonl"
    lines = [{"question": f"easy {place}", "answer": "ls"} for place in range(TIMED + 6)]
    lines += [{"prompt": "easy prompt", "answer": "ls"}, lines[0]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_workload(file, matched=True)
    assert len(found) == len(lines) - 1, "each question once"
    return found


@pytest.fixture
def file(tmp_path):
    return AnswersFile(tmp_path / "answers.jsonl")


async def ask(tiers, items, file, *, drafts=False, small="small"):
    asked = Tier(tiers.url, small), Tier(tiers.url, "large")
    await collect(
        asked,
        items,
        file,
        max_tokens=32,
        concurrency=4,
        drafts=drafts,
        progress=lambda part, done, of: None,
    )


async def test_chats_and_prompts_come_with_log_probabilities_of_the_small_tier(tiers, items, file):
    await ask(tiers, items, file)
    for place in range(len(items)):
        small, large = file.answers[place, SMALL], file.answers[place, LARGE]
        assert small.text == large.text == RIGHT and small.finished
        assert len(small.chosen) == len(small.best) == USAGE_TOKENS and not large.chosen
        assert all(best == tuple(sorted(best, reverse=True)) for best in small.best)
        assert small.alone == large.alone == (place < TIMED)
    assert {body["temperature"] for body in tiers.bodies if body["max_tokens"] > 1} == {0}


async def test_what_is_kept_is_not_asked_again_and_a_torn_line_is(tiers, items, file):
    await ask(tiers, items, file)
    answers = file.answers
    content = file.path.read_bytes()
    file.path.write_bytes(content[:-20])
    tiers.asked.clear()
    again = AnswersFile(file.path)
    assert len(again.answers) == len(answers) - 1
    await ask(tiers, items, again)
    assert tiers.asked.total() == 1
    assert again.answers.keys() == AnswersFile(file.path).answers.keys() == answers.keys()


async def test_drafts_are_timed_with_the_small_tiers_answer(tiers, items, file):
    await ask(tiers, items, file, drafts=True)
    predictions = [body["prediction"] for body in tiers.bodies if "prediction" in body]
    assert predictions == [{"type": "content", "content": RIGHT}] * TIMED
    # No draft of a prompt: only chats have predicted outputs.
    assert sum(kind == DRAFTED for _, kind in file.answers) == TIMED


def test_an_escalated_answer_is_timed_where_the_tiers_differ(file):
    for place in range(10):
        same = place < 4
        for kind, seconds in ((SMALL, 1.0), (LARGE, 4.0), (DRAFTED, 0.1 if same else 2.0)):
            text = "a" if same or kind != SMALL else "b"
            file.keep(made(question=place, kind=kind, text=text, seconds=seconds, alone=True))
    assert timed_escalation(file.answers) == 0.5


def made(**fields):
    from penstock.tune.router.answers import Answer

    return Answer(completion_tokens=10, **fields)


def test_seconds_are_priced_by_those_that_were_asked_alone(file):
    file.keep(made(question=0, kind=SMALL, text="a", seconds=1.0, alone=True))
    file.keep(made(question=1, kind=SMALL, text="a", seconds=9.0))
    file.keep(made(question=0, kind=LARGE, text="a", seconds=3.0, alone=True))
    assert timed_prices(file.answers) == (Price(0.0, 0.1), Price(0.0, 0.3))


async def test_a_busy_server_is_asked_again(tiers, items, file):
    tiers.fails = [429, 503]
    await ask(tiers, items, file)
    assert all(answer.text == RIGHT for answer in file.answers.values())


async def test_a_question_that_is_refused_is_left_out_and_counted(tiers, items, file):
    tiers.refuses = "easy 28"
    await ask(tiers, items, file)
    scored = score_answers(items, file.answers, "matcher", (Price(0, 1), Price(0, 2)), 1.0)
    assert len(scored.rows) == len(items) - 1
    assert (scored.left_out, scored.refusal) == (1, "too long")


@pytest.mark.parametrize(
    ("fails", "small", "says"),
    [
        ([], "other", "other at http.* answers 404: no such model"),
        ([401], "small", "answers 401: busy"),
        ([500] * 6, "small", "keeps failing, last with 500: busy Run this again to go on"),
    ],
)
async def test_a_server_that_does_not_answer_ends_it(tiers, items, file, fails, small, says):
    tiers.fails = fails
    with pytest.raises(TuneError, match=says):
        await ask(tiers, items, file, small=small)


async def test_a_server_that_is_not_there_ends_it(tiers, items, file):
    gone = Tier("http://127.0.0.1:9", "small")
    with pytest.raises(TuneError, match=r"cannot be reached.*Run this again to go on"):
        await collect(
            (gone, gone),
            items,
            file,
            max_tokens=1,
            concurrency=1,
            drafts=False,
            progress=lambda part, done, of: None,
        )


@pytest.mark.parametrize(
    ("score", "small", "large", "right"),
    [
        ("matcher", "`ls`", "`rm`", (True, False)),
        ("matcher", "`rm`", "`ls`", (False, True)),
        ("agreement", "The answer is 5.", "the answer is 5", (True, True)),
        ("agreement", "The answer is 5.", "the answer is 6", (False, True)),
        ("command", "`ls -la`\n\nLists.", "`ls -a -l` shows all", (True, True)),
        ("command", "`ls -la`", "I only know commands.", (False, True)),
        ("command", "I know nothing.", "I know nothing.", (True, True)),
    ],
)
def test_who_is_right(items, file, score, small, large, right):
    file.keep(made(question=0, kind=SMALL, text=small))
    file.keep(made(question=0, kind=LARGE, text=large))
    (row,) = score_answers(items[:1], file.answers, score, (Price(0, 1), Price(0, 2)), 0.5).rows
    assert (row.small_right, row.large_right) == right
    assert (row.small_cost, row.large_cost, row.escalated_cost) == (10, 20, 10)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1: not valid JSON"),
        ('{"text": "no question"}', "line 1: it must be one of"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "line 1: it must be one of"),
        ("", "is empty"),
    ],
)
def test_a_workload_that_is_none_is_refused(tmp_path, line, says):
    file = tmp_path / "data.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(TuneError, match=says):
        read_workload(file, matched=False)


def test_the_last_answer_of_a_conversation_is_not_asked(tmp_path):
    file = tmp_path / "data.jsonl"
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    ]
    file.write_text(json.dumps({"messages": messages}))
    (item,) = read_workload(file, matched=False)
    assert item.body == {"messages": messages[:2]}
    assert item.question.text == "a\nb"
    assert msgspec.json.encode(item.question)


@pytest.mark.parametrize("matched", [False, True])
def test_wordings_of_one_topic_count_once(tmp_path, file, matched):
    data = tmp_path / "data.jsonl"
    lines = [
        {"question": "How do I list files?", "answer": "ls", "topic": 7},
        {"prompt": "What is in here?", "answer": "ls", "topic": "7"},
        {"question": "Where am I?", "answer": "pwd", "topic": None},
        {"messages": [{"role": "user", "content": "Who am I?"}], "answer": "whoami"},
    ]
    data.write_text("\n\n".join(map(json.dumps, lines)))
    items = read_workload(data, matched=matched)
    for place in range(len(items)):
        for kind in (SMALL, LARGE):
            file.keep(made(question=place, kind=kind, text="ls"))
    score = "matcher" if matched else "agreement"
    rows = score_answers(items, file.answers, score, (Price(0, 1), Price(0, 2)), 0.5).rows
    assert outcomes_of(rows).groups.tolist() == [0, 0, 1, 2]
    chosen = [split(rows, seed).calibrate for seed in range(20)]
    assert {len([row for row in part if row.group == rows[0].group]) for part in chosen} == {0, 1}
