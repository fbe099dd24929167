"""Texts are taken once, and prompts that are nearly the same are never on both sides."""

import itertools
from dataclasses import replace

import pytest

from penstock.compress.distill.dataset import gist, make_dataset, prompt_of
from penstock.compress.texts import Example
from penstock.errors import CompressError
from penstock.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return Tokenizer.load(str(tiny_llama))


def questions(count: int) -> list[Example]:
    names = ["".join(pair) for pair in itertools.product("abcdefghijklmnop", repeat=2)]
    return [Example(prompt=f"list the files of {names[i]}", completion=f"answer {i}") for i in range(count)]


def test_the_same_ids_count_once_and_every_text_is_on_one_side(tokenizer):
    examples = questions(200)
    data = make_dataset(tokenizer, [*examples, *examples[:30]], max_tokens=100, held_out_share=0.2)
    assert (data.examples, data.duplicates, data.unusable) == (230, 30, 0)
    assert len(data.train) + len(data.held_out) == 200
    assert 20 <= len(data.held_out) <= 60
    held = {tuple(text.ids) for text in data.held_out}
    assert not held & {tuple(text.ids) for text in data.train}


def test_more_examples_move_none_across(tokenizer):
    some = make_dataset(tokenizer, questions(150), max_tokens=100, held_out_share=0.2)
    more = make_dataset(tokenizer, questions(250), max_tokens=100, held_out_share=0.2)
    assert {tuple(t.ids) for t in some.held_out} <= {tuple(t.ids) for t in more.held_out}


@pytest.mark.parametrize(
    "other",
    ["list 7 files in a FOLDER", "List 12 files, in a folder!", "in a folder: list 3 files, 4 files"],
)
def test_prompts_that_are_nearly_the_same_go_together(other):
    assert gist("list 5 files in a folder") == gist(other) != gist("list 5 files in a drawer")


def test_the_turns_of_a_conversation_go_together():
    def talk(*texts: str) -> Example:
        roles = ("user", "assistant")
        return Example(
            messages=tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))
        )

    assert prompt_of(talk("how?", "so", "and then?", "thus")) == prompt_of(talk("how?", "so")) == "how?"


def test_nearly_the_same_is_on_one_side(tokenizer):
    answers = ["first", "second", "third"]
    examples = [
        Example(prompt=f"{example.prompt}, {n} of them", completion=answer)
        for example in questions(100)
        for n, answer in enumerate(answers)
    ]
    data = make_dataset(tokenizer, examples, max_tokens=100, held_out_share=0.1)
    assert 12 <= len(data.held_out) <= 60 and len(data.held_out) % 3 == 0


def test_a_topic_is_on_one_side_whatever_its_words(tokenizer):
    examples = [
        Example(prompt=example.prompt, completion=example.completion, topic=str(number // 4))
        for number, example in enumerate(questions(200))
    ]
    data = make_dataset(tokenizer, examples, max_tokens=100, held_out_share=0.2)
    held, trained = ({text.topic for text in texts} for texts in (data.held_out, data.train))
    assert not held & trained and len(held | trained) == 50 and len(data.held_out) == 4 * len(held) > 0


def test_texts_of_a_single_topic_are_refused(tokenizer):
    examples = [replace(example, topic="files") for example in questions(20)]
    with pytest.raises(
        CompressError, match="20 different texts, with 1 different prompts or topics, are too few"
    ):
        make_dataset(tokenizer, examples, max_tokens=100, held_out_share=0.2)


def test_sums_are_taken_apart(tokenizer):
    """All that they differ in is numbers."""
    sums = [Example(prompt=f"{i} + {i * 7}", completion=str(i * 8)) for i in range(200)]
    data = make_dataset(tokenizer, sums, max_tokens=100, held_out_share=0.1)
    assert 8 <= len(data.held_out) <= 40


def test_few_texts_still_give_two_to_measure_by(tokenizer):
    data = make_dataset(tokenizer, questions(8), max_tokens=100, held_out_share=0.01)
    assert len(data.held_out) >= 2 and data.train


@pytest.mark.parametrize(
    ("examples", "max_tokens", "says"),
    [
        (questions(50), 2, "None of the 50 examples has anything to learn within its first 2 tokens"),
        ([], 100, "None of the 0 examples"),
        ([Example(prompt="unanswered")] * 5, 100, "they hold no answers"),
        ([Example(prompt="one", completion=str(i)) for i in range(9)], 100, "9 different texts, with 1 different"),
    ],
)  # fmt: skip
def test_too_little_is_told(tokenizer, examples, max_tokens, says):
    with pytest.raises(CompressError, match=says):
        make_dataset(tokenizer, examples, max_tokens=max_tokens, held_out_share=0.1)
