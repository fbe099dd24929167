"""What a gate goes by: figures as defined, on plain and served models alike, with intervals; refusals that come early."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from c_kernels import needs_c_kernels
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM

from penstock.compress.evaluate import PlainScorer, ServedScorer, compare, compare_all, comparison
from penstock.compress.texts import Tokens
from penstock.errors import CompressError
from penstock.models.loading import load_model

VOCAB = 320


def some_texts(count: int = 12, seed: int = 0) -> list[Tokens]:
    """Of lengths from 2 to 90 tokens, whose first part is somebody else's."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        length = rng.randint(2, 90)
        prompt = rng.randrange(length // 2 + 1)
        texts.append(
            Tokens(
                [rng.randrange(VOCAB) for _ in range(length)],
                [place >= prompt for place in range(length)],
            )
        )
    return texts


@pytest.fixture(scope="module")
def module(tiny_llama: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def changed(tiny_llama: Path) -> torch.nn.Module:
    """The same model with noise on one matrix."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RUN_BYTES", 4 * VOCAB * 7)


def test_the_figures_are_those_of_the_definitions(module, changed, small_runs):
    texts = some_texts()
    losses, others, divergences, agreed = [], [], [], []
    for text in texts:
        ids = torch.tensor([text.ids])
        with torch.no_grad():
            ours, theirs = changed(ids).logits[0, :-1], module(ids).logits[0, :-1]
        learned = torch.tensor(text.learn[1:])
        ours, theirs, targets = ours[learned], theirs[learned], ids[0, 1:][learned]
        losses.append(cross_entropy(ours, targets, reduction="none"))
        others.append(cross_entropy(theirs, targets, reduction="none"))
        p, q = log_softmax(theirs, -1), log_softmax(ours, -1)
        divergences.append((p.exp() * (p - q)).sum(-1))
        agreed.append((ours.argmax(-1) == theirs.argmax(-1)).float())
    mine, other = (torch.cat(loss).mean() for loss in (losses, others))
    found = compare(PlainScorer(changed, "changed"), PlainScorer(module, "original"), texts)
    assert found.perplexity.value == pytest.approx(float(mine.exp()), rel=1e-4)
    assert found.reference_perplexity.value == pytest.approx(float(other.exp()), rel=1e-4)
    assert found.perplexity_change.value == pytest.approx(float((mine - other).exp() - 1), abs=1e-4)
    assert found.kl.value == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-3)
    assert found.agreement.value == pytest.approx(float(torch.cat(agreed).mean()), abs=1e-6)
    assert 0 < found.agreement.value < 1 and found.kl.value > 1e-3
    assert found.kl.count == sum(len(loss) for loss in losses)


def test_intervals_hold_the_value_and_pairs_make_the_change_narrow(module, changed):
    found = compare(PlainScorer(changed, "changed"), PlainScorer(module, "original"), some_texts(40))
    for figure in (found.perplexity, found.perplexity_change, found.kl, found.agreement):
        assert figure.low < figure.value < figure.high

    def width(figure):
        return figure.high - figure.low

    relative = width(found.perplexity) / found.perplexity.value
    assert width(found.perplexity_change) < relative, "the texts' own spread is in both"
    again = compare(PlainScorer(changed, "changed"), PlainScorer(module, "original"), some_texts(40))
    assert again == found


def test_texts_of_one_topic_are_drawn_together(module, changed):
    """The same texts four times over tell no more than once."""
    texts = some_texts(20)
    named = [replace(text, topic=str(number)) for number, text in enumerate(texts)]
    once, often, alone = (
        compare(PlainScorer(changed, "changed"), PlainScorer(module, "original"), given)
        for given in (texts, 4 * named, 4 * texts)
    )
    assert (once.topics, often.topics, alone.topics) == (None, 20, None)
    for name in ("perplexity", "perplexity_change", "kl", "agreement"):
        few, many, apart = (getattr(found, name) for found in (once, often, alone))
        assert (many.value, many.low, many.high) == pytest.approx((few.value, few.low, few.high))
        assert apart.high - apart.low < 0.7 * (many.high - many.low)
        assert many.count == 4 * few.count


def test_a_served_model_is_its_transformers_one_and_its_int8_one_nearly(tiny_llama, module, small_runs):
    served = ServedScorer(load_model(str(tiny_llama), device="cpu"), "served")
    rounded = ServedScorer(load_model(str(tiny_llama), device="cpu", quantize="w8a8"), "w8a8")
    texts = some_texts()
    same, near = compare_all([served, rounded], PlainScorer(module, "original"), texts)
    assert same.kl.value < 1e-6 and same.agreement.value == 1
    assert 1e-6 < near.kl.value < 0.05 and near.agreement.value > 0.9
    assert near == compare(rounded, PlainScorer(module, "original"), texts), "no matter beside whom"


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=needs_c_kernels), "interpreter"])
def test_int8_kv_is_judged_as_it_is_served(tiny_llama, module, device):
    """By the C library, or the GPU's kernels, here as Python."""
    stored, eight = (
        ServedScorer(load_model(str(tiny_llama), device=device, kv_cache_dtype=kv), kv)
        for kv in ("auto", "int8")
    )
    texts = [Tokens(list(range(start, start + 9)), [True] * 9) for start in (3, 40)]
    same, near = compare_all([stored, eight], PlainScorer(module, "original"), texts)
    assert same.kl.value < 1e-4 and same.agreement.value == 1
    assert same.kl.value < near.kl.value < 0.05


def test_a_model_in_training_goes_on_training(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).train()
    compare(PlainScorer(model, "mine"), PlainScorer(model, "mine too"), some_texts(3))
    assert model.training
    model(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    assert all(part.grad is not None for part in model.parameters())


def test_what_cannot_be_compared_is_refused_before_anything_is_computed(tiny_llama, other_llama, module):
    original, other = (
        PlainScorer(module, "big"),
        PlainScorer(AutoModelForCausalLM.from_pretrained(other_llama), "small"),
    )
    told: list[int] = []

    def refused(candidate, texts, match):
        with pytest.raises(CompressError, match=match):
            compare(candidate, original, texts, progress=lambda done, of: told.append(done))

    refused(other, some_texts(), r"small has a vocabulary of 316 tokens and big one of 320")
    texts = some_texts(3)
    refused(original, texts[:1], r"1 of the 1 texts .* give at least 2")
    silent = Tokens([1, 2, 3], [True, False, False])  # a first token follows nothing
    refused(original, [silent, silent, texts[0]], r"1 of the 3 texts")
    refused(
        original, [*texts, Tokens([1] * 1026, [True] * 1026)], r"Text 4 has 1026 tokens, and big takes 1024"
    )
    refused(original, [*texts, Tokens([1, 320], [True] * 2)], r"Text 4 has the token id 320, .* ends at 319")
    assert not told


def test_logits_that_are_not_numbers_name_the_model_and_the_text(module, tiny_llama):
    broken = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        broken.model.embed_tokens.weight[7] = math.nan
    texts = [Tokens([1, 2, 3], [True] * 3), Tokens([1, 7, 3], [True] * 3)]
    with pytest.raises(CompressError, match=r"^broken gives logits that are not numbers .* in text 2;"):
        compare(PlainScorer(broken, "broken"), PlainScorer(module, "original"), texts)
