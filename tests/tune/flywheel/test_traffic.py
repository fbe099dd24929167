"""From examples to parts: what is left out, what counts as the same, and that nothing is in two parts."""

import pytest

from penstock.compress.distill.dataset import gist, prompt_of
from penstock.compress.texts import Example
from penstock.errors import TuneError
from penstock.tune.flywheel.gather import gather
from penstock.tune.flywheel.pii import rules
from penstock.tune.flywheel.split import FEWEST, split
from penstock.tune.router.rows import FIT
from penstock.tune.router.rows import split as split_rows
from penstock.tune.router.workload import items_of


def chat(*turns):
    roles = ("user", "assistant")
    return Example(
        messages=tuple({"role": roles[place % 2], "content": text} for place, text in enumerate(turns))
    )


def words(count):
    """So many questions of which no two are nearly the same."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [f"how do I {letters[n % 26]}{letters[n // 26 % 26]}{letters[n // 676]}" for n in range(count)]


def test_what_a_rule_finds_is_counted_and_left_out_wherever_it_stands():
    examples = [
        chat("my card is 4111 1111 1111 1111, mail a@b.example", "thanks"),
        chat("who?", "ask a@b.example"),
        chat("how do I list files?", "ls"),
        Example(prompt="reach me at +49 30 901820 or", completion=" not"),
        Example(messages=({"role": "system", "content": "key: sk-abcdefghijklmnop1234"}, {"role": "user", "content": "x"})),
    ]  # fmt: skip
    found = gather(examples, rules())
    assert found.examples == [examples[2]]
    assert (found.read, found.private, found.repeated) == (5, 4, 0)
    assert found.by_rule == {"card": 1, "email": 2, "phone": 1, "secret": 1}


def test_one_of_each_question_is_kept_and_conversations_that_begin_alike_stay_together():
    questions = [chat(text, "so") for text in words(30)]
    begun = [chat("hello", "hi", text, "so") for text in ("list all files", "stop the server")]
    found = gather([*questions, chat("HOW do I aaa?", "thus"), *begun], {})
    assert found.repeated == 1
    assert found.examples == [*questions, *begun]
    assert found.groups[-1] == found.groups[-2] == gist("hello") and len(set(found.groups)) == 31


def test_parts_share_no_group_and_have_about_their_share():
    examples = [chat(text, "so") for text in words(2000)]
    groups = [gist(prompt_of(example)) for example in examples]
    parts = split(examples, groups, distils=True)
    sizes = [len(parts.distil), len(parts.router), len(parts.check)]
    assert sum(sizes) == 2000
    assert sizes == [pytest.approx(1000, abs=90), pytest.approx(700, abs=90), pytest.approx(300, abs=70)]
    sides = [
        {gist(prompt_of(example)) for example in part} for part in (parts.distil, parts.router, parts.check)
    ]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]
    # With a student that is there, nothing is put aside for it.
    parts = split(examples, groups, distils=False)
    assert not parts.distil and len(parts.router) == pytest.approx(1400, abs=90)


def test_the_routers_own_split_is_another():
    """Were it by the same hash, all of its part would be on one side."""
    examples = [chat(text, "so") for text in words(2000)]
    groups = [gist(prompt_of(example)) for example in examples]
    part = split(examples, groups, distils=True).router

    class Row:
        def __init__(self, item):
            self.question, self.group = item.question, gist(item.question.text)

    fitted = split_rows([Row(item) for item in items_of(part)], 0).fit
    assert len(fitted) / len(part) == pytest.approx(FIT, abs=0.06)


def test_too_few_are_refused_with_what_to_do():
    examples = [chat(text, "so") for text in words(FEWEST - 1)]
    with pytest.raises(
        TuneError, match=r"399 different questions are left, and 400 are needed.*cache_prompts = true"
    ):
        split(examples, [gist(prompt_of(example)) for example in examples], distils=True)
