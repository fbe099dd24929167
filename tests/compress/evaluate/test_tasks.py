"""Answers are judged as the file says; a line that cannot be is named, with what it must be."""

import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from penstock.compress.evaluate.accuracy import accuracy
from penstock.compress.evaluate.matchers import MATCHERS, code_span
from penstock.compress.evaluate.tasks import answer_tasks, read_tasks
from penstock.errors import CompressError
from penstock.models.tokenizer import Tokenizer

ANSWER = "`ls -la`\n\nLists `all` files."


@pytest.mark.parametrize(
    ("answer", "span"),
    [
        (ANSWER, "ls -la"),
        ("Use this:\n```bash\nls\npwd\n```\nor `df`", "ls\npwd"),
        ("no code", None),
        ("an open `tick", None),
        ("two `lines\nopen` tick", None),
    ],
)
def test_the_first_code_span(answer: str, span: str | None) -> None:
    assert code_span(answer) == span


@pytest.mark.parametrize(
    ("kind", "accepted", "answer", "right"),
    [
        ("exact", ["ls -la"], ANSWER, True),
        ("exact", ["ls"], ANSWER, False),
        ("exact", ["forty  two"], " forty\ntwo\n", True),
        ("exact", ["Forty two"], "forty two", False),
        ("regex", ["nothing", "ls -\\w+"], ANSWER, True),
        ("regex", ["ls"], ANSWER, False),
        ("regex", ["(?s).*files\\."], ANSWER, True),
        ("command", ["pwd", "ls -a -l"], ANSWER, True),
        ("command", ["ls -a -l"], "ls -la", True),
        ("command", ["ls"], ANSWER, False),
        ("refusal", ["only know", "can't"], "I only know commands.", True),
        ("refusal", ["only know"], "I only know `rm -rf /`", False),
        ("refusal", ["only know"], "Sure.", False),
    ],
)
def test_each_way_of_judging(kind: str, accepted: list[str], answer: str, right: bool) -> None:
    assert MATCHERS[kind](accepted).accepts(answer) is right


def test_each_model_is_asked_in_its_own_words_and_judged_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tasks.jsonl"
    lines = [
        {"question": "where?", "accept": ["pw."], "topic": 7},
        {"messages": [{"role": "user", "content": "who?"}], "answer": "who am i", "match": "command"},
        {"prompt": "1 + 1 =", "answer": "2", "trap": True},
    ]
    file.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    tokenizer = Tokenizer.load(str(write_tiny_model(tmp_path / "tiny")))
    monkeypatch.setattr("penstock.compress.evaluate.tasks.AT_ONCE", 2)
    asked, together = [], []

    def generate(numbers: list[int], prompts: list[list[int]]) -> list[list[int]]:
        together.append(numbers)
        asked.extend(tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts)
        return [tokenizer.encode(("`pwd`", "who", " 2")[number]) for number in numbers]

    tasks = read_tasks(file)
    answers = answer_tasks(tasks, tokenizer, generate)
    assert together == [[0, 1], [2]]
    assert asked == ["<|user|>where?<|end|><|assistant|>", "<|user|>who?<|end|><|assistant|>", "1 + 1 ="]
    assert answers.texts == ["`pwd`", "who", " 2"] and answers.right == [True, False, True]
    assert answers.topics == ["7", None, None]
    assert [task.asked for task in tasks] == ["where?", "who?", "1 + 1 ="]
    with pytest.raises(CompressError, match="Task 1 has 9 tokens, and tiny takes 8 before its answer"):
        answer_tasks(tasks, tokenizer, generate, name="tiny", longest=8)
    assert len(together) == 2, "nothing is answered before all fit"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"answer": "x"}', 'one of "messages", "question" and "prompt"'),
        ('{"question": "", "answer": "x"}', "and a text"),
        ('{"question": "x", "prompt": "x", "answer": "x"}', 'one of "messages", "question" and "prompt"'),
        ('{"messages": [{"role": "user"}], "answer": "x"}', '"messages" must be a list'),
        ('{"question": "x"}', "without them nothing is right"),
        ('{"question": "x", "refuse": true}', "without them nothing is right"),
        ('{"question": "x", "accept": []}', "without them nothing is right"),
        ('{"question": "x", "accept": "y"}', '"accept" a list of texts'),
        ('{"question": "x", "accept": ["y"], "answer": "y"}', 'either "accept" or "answer"'),
        ('{"question": "x", "accept": ["("]}', "'(' is no regular expression"),
        (
            '{"question": "x", "answer": "y", "match": "fuzzy"}',
            "must be one of exact, regex, command, refusal",
        ),
    ],
)
def test_a_wrong_line_is_named(line: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"question": "x", "answer": "y"}\n\n' + line)
    with pytest.raises(CompressError) as refusal:
        read_tasks(file)
    assert f"{file}, line 3: " in refusal.value.message and says in refusal.value.message


def test_a_file_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(CompressError, match=r"empty is empty; each of its lines must be"):
        read_tasks(tmp_path / "empty")
    with pytest.raises(CompressError, match=r"nowhere cannot be read: No such file"):
        read_tasks(tmp_path / "nowhere")


def test_a_difference_is_of_the_same_answers() -> None:
    mine = [True] * 60 + [False] * 40
    theirs = [False] * 5 + [True] * 56 + [False] * 39
    found = accuracy(mine, theirs)
    assert (found.gained, found.lost) == (5, 1) and found.share.value == 0.6
    assert found.change.value == pytest.approx(0.04)
    # Bonett and Price (2012), by hand: (6 - 2) / 102 -+ 1.96 sqrt((8/102 - (4/102)^2) / 102)
    assert (found.change.low, found.change.high) == (
        pytest.approx(-0.0146, abs=1e-4),
        pytest.approx(0.0930, abs=1e-4),
    )
    same = accuracy(mine, mine).change
    assert same.low < 0 == same.value < same.high, "no change seen is not none for sure"


def test_wordings_of_one_topic_are_no_more_questions() -> None:
    mine, theirs = [True, True, False, False, True], [False, True, False, True, True]
    once = accuracy(mine, theirs)
    often = accuracy(mine * 20, theirs * 20, [str(number) for number in range(5)] * 20)
    assert once.topics is None and often.topics == 5 and often.share.count == 100
    assert (often.gained, often.lost) == (20, 20)
    for many, few in ((often.share, once.share), (often.change, once.change)):
        assert (many.value, many.low, many.high) == pytest.approx((few.value, few.low, few.high))
    taken_alone = accuracy(mine * 20, theirs * 20)
    assert taken_alone.share.low > often.share.low and taken_alone.change.high < often.change.high
