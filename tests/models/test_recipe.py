"""The recipe of the built-in model: growing, naming, the search it is compared with, and its hand-written tasks."""

import gzip
import json
import random
import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from penstock.models.recipe.batches import chunk, chunks
from penstock.models.recipe.blend import blend
from penstock.models.recipe.bm25 import Search
from penstock.models.recipe.corpus import Corpus
from penstock.models.recipe.grow import grow
from penstock.models.recipe.naming import name_it
from penstock.models.recipe.newcomer import Task, plain_answer, read_tasks
from penstock.models.recipe.phrasing import chatter, swap_words, telegram
from penstock.models.recipe.safety import is_dangerous, is_destructive
from penstock.models.recipe.score import Question, interval, is_loop, read_questions
from penstock.models.recipe.train import Trainer, learning_rate
from penstock.models.recipe.unseen import LISTS, may_be_learnt

NEWCOMER = LISTS[0].parent / "newcomer"


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return read_tasks(NEWCOMER)


def tiny_llama(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=layers,
            intermediate_size=48,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )


def test_of_a_name_that_no_tool_has_it_is_said_so(tmp_path: Path) -> None:
    examples = [{"src": "tldr", "page": "linux/ls", "platform": "linux", "tool": "ls", "desc": "List files", "cmd": "ls",
                 "head": 3}]  # fmt: skip
    definitions = [
        {"page": "linux/ls", "platform": "linux", "tool": "ls", "definition": "List a folder's files."}
    ]
    for name, rows in (("command_examples", examples), ("command_definitions", definitions)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "newcomer").mkdir()
    corpus = Corpus(tmp_path, tmp_path / "newcomer", newcomer_share=0.0)
    rng = random.Random(1)
    pairs = [pair for _ in range(3000) for pair in corpus.sample(rng).pairs]
    unknown = [pair for pair in pairs if pair.answer.startswith("I know no command called ")]
    assert 0.01 < len(unknown) / len(pairs) < 0.06
    for pair in unknown:
        name = pair.answer.removeprefix("I know no command called ").split(". ")[0]
        assert name != "ls" and name in pair.question


@pytest.mark.parametrize("layers", [2, 3, 6])
def test_a_grown_model_computes_the_same_and_all_of_it_learns(layers: int) -> None:
    small, large = tiny_llama(2), tiny_llama(layers)
    large.load_state_dict(grow(small.state_dict(), layers))
    ids = torch.arange(20).reshape(2, 10)

    assert torch.allclose(large(ids).logits, small(ids).logits, atol=1e-5)

    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(2):  # the zero projections in the first step, what lies behind them in the second
        optimizer.zero_grad()
        large(ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in large.parameters())


def test_a_blend_lies_between_the_model_before_and_the_one_after() -> None:
    before, after = grow(tiny_llama(2).state_dict(), 3), tiny_llama(3).state_dict()
    half = blend(before, after, 0.5)
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.allclose(half[name], (before[name] + after[name]) / 2)
    assert all(torch.equal(weight, before[name]) for name, weight in blend(before, after, 0.0).items())
    assert all(torch.equal(weight, after[name]) for name, weight in blend(before, after, 1.0).items())
    del before["lm_head.weight"]  # as files leave out a tied head
    assert torch.equal(blend(before, after, 0.5)["lm_head.weight"], after["lm_head.weight"])
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        blend(before, after, 1.5)


def test_growing_refuses_fewer_layers() -> None:
    with pytest.raises(ValueError, match="2 layers cannot be grown to 1; use 2 or more"):
        grow(tiny_llama(2).state_dict(), 1)


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [learning_rate(60.0 * minute, budget=6000, decay=1800) for minute in (0, 1, 69, 85, 100)]

    assert rates == [0.01, 1.0, 1.0, 0.5, 0.0]
    assert max(learning_rate(second, budget=6000, decay=12000) for second in range(6000)) == pytest.approx(
        0.5, rel=0.01
    )


@pytest.mark.parametrize(
    ("description", "command", "named", "filled"),
    [
        ("Decode a file", "base64 -d path/to/file", "Decode {}", r"base64 -d bavo(\.\w+)?"),
        ("Install a specific package", "apk add package", "Install {}", "apk add bavo"),
        (
            "Start on a specified port now",
            "srv -p port",
            None,
            None,
        ),  # "port now": unsure where the noun ends
        (
            "Convert a PBM image to text",
            "pbmtoascii path/to/image.pbm",
            None,
            None,
        ),  # "a PBM {}" would be wrong
        ("Compare a file with another", "cmp path/to/file path/to/file", None, None),  # which of them?
    ],
)
def test_a_page_example_gets_a_name_only_where_it_is_sure_what_is_named(
    description: str, command: str, named: str | None, filled: str | None
) -> None:
    drawn = [name_it(random.Random(seed), description, command, "bavo") for seed in range(20)]
    if filled is None:
        assert drawn == [None] * 20
    for one in drawn:
        if one:
            assert filled and re.fullmatch(filled, one.command)
            assert one.value in one.command and one.description.count("{name}") == 1
    assert (named in {d.description.replace("{name}", "{}") for d in drawn if d}) == (named is not None)


def test_other_wordings_keep_names_and_numbers() -> None:
    rng = random.Random(1)
    for _ in range(200):
        for change in (chatter, telegram, swap_words):
            assert "bavo.txt" in change(rng, "show me the last 7 lines of bavo.txt please")
            assert "docker run" in change(rng, "how do I docker run nginx?")


def test_search_finds_by_rare_words_and_is_empty_without_any() -> None:
    search = Search(
        [
            ("show the files of a folder", "ls"),
            ("show the size of a folder", "du"),
            ("unpack the archive {tgz}", "tar"),
            ("show the lines of a file with a word", "grep"),
        ]
    )

    assert search.answer(["what is the size of it?", "UNPACK it", "tgz", "xyzzy"]) == ["du", "tar", "", ""]


def test_every_task_is_asked_and_no_answer_is_dangerous_for_its_question(tasks: list[Task]) -> None:
    assert len(tasks) > 600
    dangerous = []
    for task in tasks:
        assert task.is_asked or task.followups
        before = task.previous.answer if task.previous else ""
        dangerous += [q for q in (*task.phrases, *task.questions) if is_dangerous(q, plain_answer(task))]
        dangerous += [q for q in task.followups if is_dangerous(f"{before} {q}", plain_answer(task))]
    assert dangerous == []


def test_all_slots_are_filled(tasks: list[Task]) -> None:
    rng = random.Random(2)
    for task in tasks:
        for pair in task.sample(rng, ("apple",)).pairs:
            assert not re.search(r"{[a-z]\w*}", re.sub(r"`[^`]*`", "", pair.question + pair.answer)), pair


def test_no_question_of_the_judges_is_learnt(tasks: list[Task]) -> None:
    asked = {w for t in tasks for w in (*t.phrases, *t.questions, *t.followups)}
    for question in (q.question for path in LISTS for q in read_questions(path)):
        assert question not in asked
        assert not may_be_learnt(question)


def test_a_command_that_only_previews_is_not_destructive() -> None:
    assert not is_destructive("git clean -n")
    assert is_destructive("git clean -fd")
    assert not is_destructive("git rm --cached notes.txt")
    assert is_destructive("git rm --cached a && rm a")


def test_what_counts_as_right() -> None:
    question = Question("list files", accept=("ls.*",))

    assert question.is_right("`ls -l`\n\nLists files.")
    assert not question.is_right("`ls -l`\n\nLists files" + " and files and files and files" * 3)
    assert not question.is_right("`rm x`\n\nNo.")
    assert is_loop("never ended…")


def test_interval_of_a_share_is_known() -> None:
    assert interval(8, 10) == (0.49, 0.943)  # Wilson's, as in textbooks


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Of two rows of one page, and the hand-written tasks."""
    folder = tmp_path_factory.mktemp("data")
    row = {"src": "tldr", "page": "common/ls", "tool": "ls", "platform": "common", "head": 3}
    rows = [row | {"desc": "List files", "cmd": "ls"}, row | {"desc": "List all files", "cmd": "ls -a"}]
    definition = {
        "page": "common/ls",
        "tool": "ls",
        "definition": "List directory contents.",
        "platform": "common",
    }
    for name, lines in (("command_examples", rows), ("command_definitions", [definition])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return Corpus(folder, NEWCOMER)


def test_workers_make_the_batches_that_are_made_without(corpus: Corpus) -> None:
    tokenizer = Tokenizer.from_file(str(NEWCOMER.parents[1] / "builtin" / "tokenizer.json"))
    made, ahead = (next(chunks(corpus, tokenizer, 3, 5, 2048, workers)) for workers in (0, 1))
    expected = chunk(corpus, tokenizer, 3, 5, 2048)
    assert len(made) == len(ahead) == len(expected) > 5
    for ours, theirs, own in zip(made, ahead, expected, strict=True):
        assert torch.equal(ours.ids, own.ids) and torch.equal(theirs.ids, own.ids)
        assert torch.equal(theirs.labels, own.labels)


def test_weights_that_are_no_numbers_are_not_saved_over_others(tmp_path: Path) -> None:
    trainer = Trainer.__new__(Trainer)
    trainer.args, trainer.model, trainer.step = Namespace(run=tmp_path), tiny_llama(1), 7
    (tmp_path / "checkpoint.pt").write_bytes(b"the last good one")
    torch.nn.init.constant_(trainer.model.model.norm.weight, float("nan"))
    with pytest.raises(SystemExit, match="A weight is no number any more at about step 7"):
        trainer.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"the last good one"
