"""Texts are taken once, and prompts that are nearly the same are never on both sides."""

import itertools

import pytest

from penstock.compress.distill.dataset import make_dataset, prompt_hash
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
    assert some.fingerprint != more.fingerprint


@pytest.mark.parametrize(
    "other",
    ["list 7 files in a FOLDER", "List 12 files, in a folder!", "in a folder: list 3 files, 4 files"],
)
def test_prompts_that_are_nearly_the_same_go_together(other):
    one = Example(prompt="list 5 files in a folder", completion="a")
    assert prompt_hash(one) == prompt_hash(Example(prompt=other, completion="b"))
    assert prompt_hash(one) != prompt_hash(Example(prompt="list 5 files in a drawer", completion="a"))


def test_the_turns_of_a_conversation_go_together():
    def talk(*texts: str) -> Example:
        roles = ("user", "assistant")
        return Example(
            messages=tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))
        )

    assert prompt_hash(talk("how?", "so")) == prompt_hash(talk("how?", "so", "and then?", "thus"))
    assert prompt_hash(talk("how?", "so")) != prompt_hash(talk("why?", "so"))


def test_few_texts_still_give_two_to_measure_by(tokenizer):
    data = make_dataset(tokenizer, questions(8), max_tokens=100, held_out_share=0.01)
    assert len(data.held_out) >= 2 and data.train


@pytest.mark.parametrize(
    ("examples", "max_tokens", "says"),
    [
        (questions(50), 2, "None of the 50 examples has anything to learn within its first 2 tokens"),
        ([], 100, "None of the 0 examples"),
        ([Example(prompt="unanswered")] * 5, 100, "they hold no answers"),
        ([Example(prompt="one", completion=str(i)) for i in range(9)], 100, "9 different texts with 1 different"),
    ],
)  # fmt: skip
def test_too_little_is_told(tokenizer, examples, max_tokens, says):
    with pytest.raises(CompressError, match=says):
        make_dataset(tokenizer, examples, max_tokens=max_tokens, held_out_share=0.1)
