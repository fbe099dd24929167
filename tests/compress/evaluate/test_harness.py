"""Models answer lm-evaluation-harness as its own transformers models do. Skipped without `penstock[harness]`."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from penstock.cli_engine_runs import writing
from penstock.compress.evaluate import ServedScorer
from penstock.compress.evaluate.harness import Harnessed
from penstock.errors import CompressError
from penstock.models.tokenizer import Tokenizer
from penstock.scheduler import Engine, EngineConfig


@pytest.fixture(scope="module")
def ours(other_llama: Path) -> Harnessed:
    """Contexts of 100 tokens."""
    return harnessed(Engine(EngineConfig(model=str(other_llama), dtype="float32", quantize="none")))


def harnessed(engine: Engine) -> Harnessed:
    words = Tokenizer.load(engine.config.model)
    return Harnessed(words, ServedScorer(engine.runner.model, "ours"), writing(engine, words, "ours"))


@pytest.fixture(scope="module")
def theirs(other_llama: Path) -> Any:
    return HFLM(pretrained=str(other_llama), device="cpu", dtype="float32")


def words(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefgh", k=4)) for _ in range(count))


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def test_likelihoods_of_answers_also_behind_nothing_and_behind_too_much(ours, theirs):
    pairs = [
        (words(1, 4), " " + words(2, 2)),
        ("", words(3, 3)),
        (words(4, 60), " " + words(5, 4)),
        ("a ", "b"),
    ]
    requests = asked("loglikelihood", *pairs)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    for (mine, greedy), (likelihood, was_greedy) in zip(
        ours.loglikelihood(requests, disable_tqdm=True), expected, strict=True
    ):
        assert mine == pytest.approx(likelihood, abs=2e-3)
        assert greedy == was_greedy


def test_choices_of_one_token_have_their_text_computed_once(ours, theirs, monkeypatch):
    requests = asked(
        "loglikelihood", *((words(seed, 4) + " ", choice) for seed in (9, 10) for choice in "abcd")
    )
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    computed = []
    logits = ServedScorer.logits
    monkeypatch.setattr(
        ServedScorer, "logits", lambda self, ids, rows: computed.append(ids) or logits(self, ids, rows)
    )
    encoded = [
        (("", ""), ours.tok_encode(words(seed, 4)), [choice]) for seed in (9, 10) for choice in (5, 6, 7, 8)
    ]
    alone = [ours._loglikelihood_tokens([request], disable_tqdm=True)[0] for request in reversed(encoded)]
    computed.clear()
    ours._last = None
    assert ours._loglikelihood_tokens(encoded, disable_tqdm=True) == alone[::-1]
    assert len(computed) == 2
    assert [one for one, _ in ours.loglikelihood(requests, disable_tqdm=True)] == pytest.approx(
        [one for one, _ in expected], abs=2e-3
    )


def test_whole_texts_each_token_behind_as_much_as_fits(ours, theirs):
    requests = asked("loglikelihood_rolling", (words(6, 3),), (words(7, 70),), (words(8, 20),))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, rel=1e-4)
    assert ours.loglikelihood_rolling(asked("loglikelihood_rolling", ("",)), disable_tqdm=True) == [0]


def test_greedy_answers_end_where_the_task_says(ours, theirs):
    how = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    requests = asked("generate_until", *((words(seed, 3), how) for seed in range(6)))
    assert ours.generate_until(requests, disable_tqdm=True) == theirs.generate_until(
        requests, disable_tqdm=True
    )
    whole = ours.generate_until(
        asked("generate_until", (words(0, 3), how | {"until": []})), disable_tqdm=True
    )[0]
    cut = asked("generate_until", (words(0, 3), how | {"until": whole[3:5]}))
    assert ours.generate_until(cut, disable_tqdm=True) == [whole[: whole.index(whole[3:5])]]


def test_what_a_task_asks_and_is_not_known_is_refused(ours):
    for how, says in [
        ({"num_beams": 4}, "asks for num_beams of 4; there is no beam search here"),
        ({"penalty": 1}, "asks for penalty of its answers"),
        ({"temperature": 0.7}, "does not say whether its answers are sampled"),
    ]:
        with pytest.raises(CompressError, match=says):
            ours.generate_until(asked("generate_until", ("a", how)), disable_tqdm=True)
    with pytest.raises(CompressError, match="An answer to score has 0 tokens of its own"):
        ours._loglikelihood_tokens([(("a", ""), [5], [])], disable_tqdm=True)
    with pytest.raises(
        CompressError, match="An answer to score has 101 tokens of its own, and ours takes 1 to 100"
    ):
        ours._loglikelihood_tokens([(("a", ""), [5], [5] * 101)], disable_tqdm=True)


def test_a_prompt_keeps_half_of_the_context_where_the_answer_may_be_longer(ours):
    how = {"max_gen_toks": 2048, "num_beams": 1}
    short, long = words(1, 4), words(2, 60)
    ids, params = ours._prompt(short, how)
    assert ids == ours.tok_encode(short) and params["max_tokens"] == 100 - len(ids)
    ids, params = ours._prompt(long, how)
    assert ids == ours.tok_encode(long)[-50:] and params["max_tokens"] == 50


def test_sampled_answers_differ_and_are_kept_for_no_other_question(ours):
    how = {"until": [], "max_gen_toks": 12, "do_sample": True}
    assert ours._prompt("a", how)[1] == {"max_tokens": 12, "stop": ()}, "at the engine's temperature, 1"
    kept = []
    ours.cache_hook.add_partial = lambda *found: kept.append(found)
    texts = ours.generate_until(asked("generate_until", *[(words(1, 3), how)] * 4), disable_tqdm=True)
    assert len(set(texts)) > 1 and not kept
    ours.generate_until(asked("generate_until", (words(1, 3), how | {"do_sample": False})), disable_tqdm=True)
    assert len(kept) == 1


def test_logits_that_are_no_numbers_are_no_score(other_llama):
    engine = Engine(EngineConfig(model=str(other_llama), dtype="float32", quantize="none"))
    with torch.no_grad():
        engine.runner.model.module.lm_head.weight.fill_(float("nan"))
    broken, says = harnessed(engine), "ours gives logits that are not numbers"
    with pytest.raises(CompressError, match=says):
        broken.loglikelihood(asked("loglikelihood", ("a", "b")), disable_tqdm=True)
    with pytest.raises(CompressError, match=says):
        broken.generate_until(asked("generate_until", ("a", {})), disable_tqdm=True)
