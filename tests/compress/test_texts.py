"""Which ids an example becomes, and which of them are the model's to write."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.compress.distill.dataset import Dataset
from penstock.compress.kept_texts import fingerprint_of, kept_dataset, read_dataset
from penstock.compress.plain_model import blocks, load_plain
from penstock.compress.synthetic import synthetic_texts
from penstock.compress.texts import Example, prompt_ids, read_examples, tokenize
from penstock.errors import CompressError, ModelLoadError
from penstock.models.tokenizer import Tokenizer

ASK, ANSWER = {"role": "user", "content": "hello there"}, {"role": "assistant", "content": "`ls -la`"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load("builtin")


def learnt(tokenizer: Tokenizer, example: Example) -> str:
    (tokens,) = tokenize(tokenizer, [example], 500)
    written = [token for token, learn in zip(tokens.ids, tokens.learn, strict=True) if learn]
    return tokenizer.decode(written, skip_special_tokens=False)


def test_only_answers_and_what_ends_them_are_learnt(tokenizer: Tokenizer) -> None:
    two_turns = Example(messages=(ASK, ANSWER, {"role": "user", "content": "more"}, ANSWER))
    assert learnt(tokenizer, two_turns) == "`ls -la`<|end|>`ls -la`<|end|>"
    (tokens,) = tokenize(tokenizer, [two_turns], 500)
    assert tokenizer.decode(tokens.ids, skip_special_tokens=False) == tokenizer.render_chat(
        [dict(message) for message in two_turns.messages], add_generation_prompt=False
    )


def test_the_ids_are_those_of_serving(tokenizer: Tokenizer) -> None:
    example = Example(messages=(ASK, ANSWER))
    (tokens,) = tokenize(tokenizer, [example], 500)
    prompt = prompt_ids(tokenizer, example)
    assert prompt == prompt_ids(tokenizer, Example(messages=(ASK,)))
    assert tokens.ids[: len(prompt)] == prompt
    assert not any(tokens.learn[: len(prompt)])
    assert all(tokens.learn[len(prompt) :])


def test_a_completion_is_learnt_with_its_end_and_a_text_whole(tokenizer: Tokenizer) -> None:
    assert learnt(tokenizer, Example(prompt="one two", completion=" three")) == " three<|end|>"
    assert learnt(tokenizer, Example(completion="one two three")) == "one two three"


def test_a_prompt_without_an_answer_is_not_one_that_ends_at_once(tokenizer: Tokenizer) -> None:
    assert tokenize(tokenizer, [Example(prompt="one two"), Example(messages=(ASK,))], 500) == []


def test_what_is_cut_to_nothing_is_left_out(tokenizer: Tokenizer) -> None:
    long = Example(prompt="word " * 50, completion="x")
    assert tokenize(tokenizer, [long, Example(completion="kept")], 20) == tokenize(
        tokenizer, [Example(completion="kept")], 20
    )


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"messages": []}', '{"messages": [{"role": "user", "content": 3}]}', '{"text": ""}'],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(CompressError, match=r"data\.jsonl, line 3: "):
        read_examples(file)


def test_a_file_without_examples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n\n")
    with pytest.raises(CompressError, match="is empty"):
        read_examples(tmp_path / "data.jsonl")
    with pytest.raises(CompressError, match="cannot be read"):
        read_examples(tmp_path / "other.jsonl")


def test_texts_are_kept_with_their_topics(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    lines = [
        {"prompt": "one two", "completion": "three", "topic": 7},
        {"messages": [ASK, ANSWER], "topic": "greeting"},
        {"text": "one two three", "topic": None},
        {"text": "four five six", "topic": ""},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    examples = read_examples(file)
    texts = tokenize(tokenizer, examples, 100)
    assert [text.topic for text in texts] == ["7", "greeting", None, None]
    others = [replace(examples[0], topic="8"), *examples[1:]]
    assert fingerprint_of(others) != fingerprint_of(examples), "other texts would be held out"
    made = Dataset(texts[2:], texts[:2], 4, 0, 0)
    kept_dataset(tmp_path, "given", lambda: made)
    read = read_dataset(tmp_path)
    assert read == made and [text.topic for text in read.held_out] == ["7", "greeting"]


def test_a_model_writes_its_own_texts_the_same_each_time() -> None:
    model = load_plain("builtin", dtype="float32")
    texts = synthetic_texts(model, 5, tokens=30, seed=3)
    assert texts == synthetic_texts(model, 5, tokens=30, seed=3)
    assert texts != synthetic_texts(model, 5, tokens=30, seed=4)
    assert len(texts) == 5
    assert all(2 < len(text.ids) <= 30 for text in texts)
    end = model.tokenizer.eos_token_id
    assert all(end not in text.ids[2:-1] for text in texts)


def test_the_layers_are_found_by_name() -> None:
    name, layers = blocks(load_plain("builtin").module)
    assert name == "model.layers"
    assert len(layers) == 4


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be loaded as a causal language model"):
        load_plain(str(tmp_path))
