"""A whole model rounded, its layers' sensitivity, and choices under a budget: on a tiny model."""

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from penstock.compress.evaluate import PlainScorer, compare
from penstock.compress.plain_model import PlainModel, load_plain
from penstock.compress.quantize import budget
from penstock.compress.quantize.budget import AIM, within
from penstock.compress.quantize.calibration import Texts, divide
from penstock.compress.quantize.layer import BlockResult, install
from penstock.compress.quantize.precision import Precision
from penstock.compress.quantize.whole import Quantizer
from penstock.compress.texts import Tokens
from penstock.errors import CompressError


def no_progress(part: str, done: int, of: int) -> None:
    assert 0 <= done <= of


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> PlainModel:
    return load_plain(str(tiny_llama), dtype="bfloat16")


@pytest.fixture(scope="module")
def texts() -> Texts:
    draw = random.Random(7)
    found = [
        Tokens([draw.randrange(3, 300) for _ in range(length)], [True] * length)
        for length in (draw.randrange(20, 60) for _ in range(160))
    ]
    return divide(found[40:], found[:40])


@pytest.fixture
def quantizer(model: PlainModel, texts: Texts, tmp_path: Path) -> Quantizer:
    return Quantizer(model, texts, tmp_path, no_progress)


def rounded_module(model: PlainModel, quantized: Any) -> Any:
    module = copy.deepcopy(model.module).float()
    install(module, BlockResult({**quantized.layers, "lm_head": quantized.head}, quantized.changed))
    return module


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a16"])
def test_what_comes_out_computes_what_was_measured(
    scheme: Any, quantizer: Quantizer, model: PlainModel, texts: Texts
) -> None:
    quantized = quantizer.quantize(quantizer.uniform(scheme, 32))
    assert len(quantized.layers) == 14  # seven in each of two blocks
    assert quantized.head is not None
    assert quantized.head.scheme == ("w8a8" if scheme == "w8a8" else "w8a16")
    whole = copy.deepcopy(model.module).float()
    comparison = compare(
        PlainScorer(rounded_module(model, quantized), "rounded"), PlainScorer(whole, "whole"), texts.selection
    )
    # The blocks are computed with the rotary angles of the model's own dtype, the whole with float32 ones.
    assert comparison.kl.value == pytest.approx(quantized.selection_kl, rel=0.05, abs=1e-5)
    assert 0 < quantized.selection_kl < (0.5 if scheme == "w4a16" else 0.01)


def test_it_beats_rounding_to_nearest(quantizer: Quantizer, model: PlainModel, texts: Texts) -> None:
    from penstock.compress.quantized_tensor import QuantizedTensor

    quantized = quantizer.quantize(quantizer.uniform("w4a16", 32))
    nearest = copy.deepcopy(model.module).float()
    for name in quantized.layers:
        linear = nearest.get_submodule(name)
        own = quantized.layers[name]
        linear.weight = nn.Parameter(
            QuantizedTensor.nearest(linear.weight.detach(), own.scheme, own.group).dequantized()
        )
    whole = PlainScorer(copy.deepcopy(model.module).float(), "whole")
    kls = [
        compare(PlainScorer(module, "rounded"), whole, texts.held_back).kl.value
        for module in (rounded_module(model, quantized), nearest)
    ]
    assert kls[0] < 0.8 * kls[1]


def test_every_matrix_is_in_the_report_once(quantizer: Quantizer) -> None:
    precisions = quantizer.uniform("w4a16", 32)
    precisions["model.layers.1.mlp.down_proj"] = None
    records = quantizer.quantize(precisions).records
    names = [record.name for record in records]
    assert len(names) == len(set(names)) == 15 and set(names) == set(quantizer.linears)
    stored = [record for record in records if record.used == "as stored"]
    assert [record.name for record in stored] == ["model.layers.1.mlp.down_proj"] and stored[0].reason
    methods = {record.name: record.method for record in records if record not in stored}
    assert methods.pop("lm_head") == "nearest"
    assert set(methods.values()) == {"gptq"}


def test_experts_and_routers_are_reported_as_left_alone(texts: Texts, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from tiny_mixture import save_mixture
    from transformers import AutoModelForCausalLM

    folder = save_mixture("qwen3_moe", tmp_path / "mixture")
    mixture: Any = SimpleNamespace(module=AutoModelForCausalLM.from_pretrained(folder).eval())
    (tmp_path / "work").mkdir()
    quantizer = Quantizer(mixture, texts, tmp_path / "work", no_progress)
    records = {record.name: record for record in quantizer.quantize(quantizer.uniform("w8a8", 32)).records}
    experts = records["model.layers.0.mlp.experts"]
    assert experts.used == experts.asked == "as stored" and "experts" in experts.reason
    assert records["model.layers.1.mlp.gate"].used == "as stored"
    assert records["model.layers.0.self_attn.q_proj"].used == "w8a8"


def test_what_was_done_is_found_again_to_the_bit(
    model: PlainModel, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.compress.quantize import whole

    (tmp_path / "whole").mkdir()
    uninterrupted = Quantizer(model, texts, tmp_path / "whole", no_progress)
    expected = uninterrupted.quantize(uninterrupted.uniform("w4a16", 32))

    class Interrupted(Exception):
        pass

    def stop_in_the_second_block(part: str, done: int, of: int) -> None:
        if done == 1:
            raise Interrupted

    (tmp_path / "cut").mkdir()
    with pytest.raises(Interrupted):
        Quantizer(model, texts, tmp_path / "cut", stop_in_the_second_block).quantize(
            uninterrupted.uniform("w4a16", 32)
        )
    rounded = []
    original = whole.quantize_block
    monkeypatch.setattr(whole, "quantize_block", lambda *args: rounded.append(args[5]) or original(*args))
    found = Quantizer(model, texts, tmp_path / "cut", no_progress).quantize(
        uninterrupted.uniform("w4a16", 32)
    )
    assert rounded == ["model.layers.1"]
    assert found.selection_kl == expected.selection_kl and found.records == expected.records
    for name in expected.layers:
        assert torch.equal(found.layers[name].values, expected.layers[name].values)
        assert torch.equal(found.layers[name].scale, expected.layers[name].scale)
    assert found.changed.keys() == expected.changed.keys()
    assert all(torch.equal(data, expected.changed[name]) for name, data in found.changed.items())


def test_a_budget_is_kept_and_a_smaller_one_costs_bytes(quantizer: Quantizer) -> None:
    sizes, all_four = [], quantizer.quantize(quantizer.uniform("w4a16", 32)).selection_kl
    for share in (0.6, 0.1):
        quantized, costs = within(quantizer, share * all_four, 32)
        assert quantized.selection_kl <= AIM * share * all_four
        sizes.append(_bits(quantized))
        by_layer = {(name, str(cost.precision)): cost.kl for cost in costs for name in cost.layers}
        for record in quantized.records:
            assert record.kl == by_layer.get((record.name, record.used))
    assert sizes[0] < sizes[1]
    assert len(costs) == 3 * 4 * 2 + 2
    four = [cost.kl for cost in costs if cost.precision == Precision("w4a16", 32)]
    eight = [
        cost.kl for cost in costs if cost.precision == Precision("w8a16") and cost.layers != ("lm_head",)
    ]
    assert all(large > small for large, small in zip(four, eight, strict=True))


def test_choices_over_the_budget_leave_nothing_on_the_disk_and_are_not_made_again(
    quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs are measured too low here, so that the first choice is over the budget."""
    costs = budget.costs_of(quantizer, 32)
    too_low = [replace(cost, kl=cost.kl / 8) for cost in costs]
    monkeypatch.setattr(budget, "costs_of", lambda *_: too_low)
    quantize, made = Quantizer.quantize, list[float]()

    def counted(self: Quantizer, precisions: Any) -> Any:
        assert len(list(self.work.glob("block-*"))) <= 2, "more than one choice is kept"
        done = quantize(self, precisions)
        made.append(done.selection_kl)
        return done

    monkeypatch.setattr(Quantizer, "quantize", counted)
    most = sum(cost.kl for cost in costs if cost.precision == Precision("w4a16", 32)) / 4
    first, _ = within(quantizer, most, 32)
    assert len(made) > 1 and made[0] > AIM * most >= made[-1]
    assert len(list(quantizer.work.glob("block-*"))) == 2
    made.clear()
    again, _ = within(quantizer, most, 32)
    assert made == [first.selection_kl] == [again.selection_kl]
    made.clear()
    within(quantizer, 100 * most, 32)  # what was over another budget is not over this one
    assert len(made) == 1


def _bits(quantized: Any) -> float:
    bits = {"w8a8": 8, "w8a16": 8, "w4a16": 4, "as stored": 16}
    return sum(bits[record.used.removesuffix(" group 32")] for record in quantized.records)


def test_activations_that_overflow_are_named(tiny_llama: Path, texts: Texts, tmp_path: Path) -> None:
    broken = load_plain(str(tiny_llama))
    broken.module.model.layers[0].mlp.up_proj.weight.data.fill_(1e38)
    quantizer = Quantizer(broken, texts, tmp_path, no_progress)
    with pytest.raises(CompressError, match=r"model\.layers\.0\.mlp\.down_proj is not all numbers"):
        quantizer.quantize(quantizer.uniform("w8a8", 32))


def test_a_model_without_linear_layers_is_refused(texts: Texts, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from transformers import GPT2Config, GPT2LMHeadModel

    module = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    fake: Any = SimpleNamespace(module=module.eval())
    with pytest.raises(CompressError, match="GPT2LMHeadModel has no linear layers"):
        Quantizer(fake, texts, tmp_path, no_progress)


def test_a_layer_that_takes_another_precision_than_asked_says_why(texts: Texts, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 1, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128}
    odd: Any = SimpleNamespace(module=LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval())
    quantizer = Quantizer(odd, texts, tmp_path, no_progress)
    records = quantizer.quantize(quantizer.uniform("w4a16", 128), Precision("w4a16", 128)).records
    found = {record.name.rpartition(".")[2]: (record.used, record.asked, record.reason) for record in records}
    asked = "w4a16 group 128"
    assert found["q_proj"] == ("w4a16 group 64", asked, "64 columns are no whole groups of 128")
    assert found["down_proj"] == ("w8a16", asked, "72 columns are no whole groups of 128")
    assert found["lm_head"] == ("w8a16", asked, "the output layer keeps 8 bits")


def test_zero_points_are_of_folders_with_layers_of_one_kind(quantizer: Quantizer, texts: Texts) -> None:
    """transformers reads them from no other."""
    found = quantizer.uniform("w4a16", 32)
    head = found.pop("lm_head")
    assert head == Precision("w8a16")
    assert set(found.values()) == {Precision("w4a16", 32, has_zeros=True)}
    of_two_kinds = quantizer.uniform("w4a16", 128)  # 64 columns, and 128
    assert {str(precision) for precision in of_two_kinds.values() if precision} > {"w4a16 group 64"}
    assert not any(precision.has_zeros for precision in of_two_kinds.values() if precision)


def test_layers_in_four_bits_make_up_for_those_before(
    model: PlainModel, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_model = PlainScorer(copy.deepcopy(model.module).float(), "whole")

    def kl(folder: str) -> float:
        quantizer = Quantizer(model, texts, tmp_path / folder, no_progress)
        quantizer.work.mkdir()
        quantized = quantizer.quantize(quantizer.uniform("w4a16", 32))
        scorer = PlainScorer(rounded_module(model, quantized), "rounded")
        return compare(scorer, whole_model, texts.calibration).kl.value

    making_up = kl("with")
    monkeypatch.setattr(Precision, "makes_up", False)
    assert making_up < 0.95 * kl("without")
