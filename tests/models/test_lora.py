"""Adapters beside a model give what the model with their weights merged in would give, row by row, in any company."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapter import merge, sides, write_adapter
from tiny_model import write_tiny_model
from torch import nn

from penstock.errors import InvalidRequestError, ModelLoadError
from penstock.models import loading
from penstock.models.loading import load_model
from penstock.models.steady_linear import steady_linear
from penstock.scheduler import Engine, EngineConfig, SamplingParams

PROMPTS = [[7, 8, 9] * 5, list(range(20, 90)), [40]]
NEW_TOKENS = 40
Answer = tuple[list[int], list[float]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("lora") / "tiny")


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of other ranks, scalings and layers."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "whole": write_adapter(folder / "whole", model, seed=1),
        "narrow": write_adapter(
            folder / "narrow", model, seed=2, rank=3, alpha=6, targets=("q_proj", "up_proj"), use_rslora=True
        ),
    }


def engine_of(model: Path, adapters: dict[str, Path] | None = None, **settings: Any) -> Engine:
    given = {name: str(folder) for name, folder in (adapters or {}).items()}
    return Engine(EngineConfig(**{"model": str(model), "adapters": given, "block_size": 16, **settings}))


def run(
    engine: Engine, requests: dict[str, tuple[list[int], str | None]], rng: random.Random | None = None
) -> dict[str, Answer]:
    """Greedy tokens and log-probabilities; with `rng`, in steps of random sizes."""
    answers: dict[str, Answer] = {name: ([], []) for name in requests}
    for name, (prompt, adapter) in requests.items():
        params = SamplingParams(
            temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=0, adapter=adapter
        )
        engine.add_request(name, prompt, params)
    while engine.has_work():
        if rng is not None:
            engine.scheduler.max_num_batched_tokens = rng.choice([5, 16, 33, 64])
        for delta in engine.step():
            answers[delta.request_id][0].extend(delta.token_ids)
            answers[delta.request_id][1].extend(entry.logprob for entry in delta.logprobs or [])
        engine.check()
    return answers


def mixed(adapters: dict[str, Path]) -> dict[str, tuple[list[int], str | None]]:
    """Every prompt with every adapter and without any."""
    return {
        f"{adapter}/{number}": (prompt, adapter)
        for number, prompt in enumerate(PROMPTS)
        for adapter in (None, *adapters)
    }


def of_adapter(answers: dict[str, Answer], adapter: str | None) -> list[Answer]:
    return [answers[f"{adapter}/{number}"] for number in range(len(PROMPTS))]


def assert_same(got: list[Answer], want: list[Answer]) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine[0] == theirs[0]
        torch.testing.assert_close(torch.tensor(mine[1]), torch.tensor(theirs[1]), atol=1e-3, rtol=0)


def test_a_mixed_batch_equals_merged_models(model: Path, adapters: dict[str, Path], tmp_path: Path):
    # A pool of one sequence: they are preempted as well.
    engine = engine_of(model, adapters, max_model_len=160, kv_cache_tokens=160, max_num_seqs=4)
    answers = run(engine, mixed(adapters), random.Random(0))
    assert engine.stats.preemptions
    plain = of_adapter(answers, None)
    for name, folder in adapters.items():
        merged = engine_of(merge(model, folder, tmp_path / name))
        want = run(merged, {str(number): (prompt, None) for number, prompt in enumerate(PROMPTS)})
        assert_same(of_adapter(answers, name), list(want.values()))
        assert all(
            mine[0] != theirs[0] for mine, theirs in zip(of_adapter(answers, name), plain, strict=True)
        )
    alone = run(engine_of(model), {str(number): (prompt, None) for number, prompt in enumerate(PROMPTS)})
    assert_same(plain, list(alone.values()))


def test_quantized_layers_get_the_same_addition(
    model: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        loading, "stack_layers", lambda *args: 0
    )  # keeps the modules that are added to by hand
    answers = run(engine_of(model, adapters, quantize="w8a8"), mixed(adapters), random.Random(0))
    for name, folder in adapters.items():
        by_hand = engine_of(model, quantize="w8a8")
        for path, (down, up, scaling) in sides(folder).items():
            layer = by_hand.runner.model.module.get_submodule(path)
            layer.register_forward_hook(added_by_hand(down, up, scaling))
        want = run(by_hand, {str(number): (prompt, None) for number, prompt in enumerate(PROMPTS)})
        # To the last bit: sums in another order would round an activation to another integer here and there.
        assert of_adapter(answers, name) == list(want.values())


def added_by_hand(down: torch.Tensor, up: torch.Tensor, scaling: float) -> Callable[..., torch.Tensor]:
    """For all rows, with the rank filled up with zeros as the adapter's own is."""
    more = 32 - down.shape[0]
    down, up = nn.functional.pad(down, (0, 0, 0, more)), nn.functional.pad(scaling * up, (0, more))

    def add(_layer: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + steady_linear(steady_linear(args[0], down), up)

    return add


def test_what_is_added_is_the_scaled_product(model: Path, adapters: dict[str, Path]):
    """Against float64, in W8A8, where the layer is a part of a shared matrix, and for some of the rows only."""
    loaded = load_model(
        str(model), quantize="w8a8", adapters={name: str(path) for name, path in adapters.items()}
    )
    path = "model.layers.1.self_attn.q_proj"
    layer = loaded.module.get_submodule(path)
    x = torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(0))
    loaded.adapters.use({})
    base = layer(x).clone()
    rows = {"whole": torch.tensor([0, 5]), "narrow": torch.tensor([2, 3, 6])}
    loaded.adapters.use(rows)
    want = base.double()
    for name, mine in rows.items():
        down, up, scaling = sides(adapters[name])[path]
        want[0, mine] += scaling * (x[0, mine].double() @ down.double().t()) @ up.double().t()
    got = layer(x.clone())
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)
    assert torch.equal(got[0, [1, 4]], base[0, [1, 4]])


def test_a_row_does_not_depend_on_its_company(model: Path, adapters: dict[str, Path]):
    """In w8a8, to the last bit, as without adapters."""
    requests = mixed(adapters)
    together = run(engine_of(model, adapters, quantize="w8a8"), requests, random.Random(3))
    engine = engine_of(model, adapters, quantize="w8a8", prefix_caching=False)
    for name, request in requests.items():
        assert run(engine, {name: request})[name] == together[name], name


def test_what_is_kept_of_a_prompt_is_found_by_the_same_adapter_only(model: Path, adapters: dict[str, Path]):
    engine = engine_of(model, adapters)
    prompt = list(range(64))
    hits = []
    for adapter in (None, "whole", "narrow", None, "whole", "narrow"):
        before = engine.stats.prefix_hits
        run(engine, {"one": (prompt, adapter)})
        hits.append(engine.stats.prefix_hits - before)
    assert hits == [0, 0, 0, 48, 48, 48]


def test_layers_stored_transposed(tmp_path: Path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=96,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    folder = write_adapter(
        tmp_path / "adapter", tmp_path / "gpt2", seed=1, targets=("c_attn", "c_proj"), transposed=True
    )
    _rename(folder, lambda path: path if path.startswith("transformer.") else f"transformer.{path}")
    merged = engine_of(merge(tmp_path / "gpt2", folder, tmp_path / "merged", transposed=True))
    prompts = {"one": ([5, 6, 7], None)}
    want = run(merged, prompts)
    got = run(engine_of(tmp_path / "gpt2", {"a": folder}), {"one": ([5, 6, 7], "a")})
    assert_same(list(got.values()), list(want.values()))
    assert got["one"][0] != run(engine_of(tmp_path / "gpt2"), prompts)["one"][0]


def test_ranks_and_alphas_of_single_layers(model: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "a", model, seed=1, rank=4, targets=("q_proj",))
    loaded = load_model(str(model), adapters={"a": str(folder)})
    twice = {"layers.1.self_attn.q_proj": 32}
    other = write_adapter(tmp_path / "b", model, seed=1, rank=4, targets=("q_proj",), alpha_pattern=twice)
    again = load_model(str(model), adapters={"a": str(other)})
    ups = [
        [each.adapters._layers[f"model.layers.{layer}.self_attn.q_proj"]["a"].up for layer in range(2)]
        for each in (loaded, again)
    ]
    assert torch.equal(ups[0][0], ups[1][0])
    assert torch.equal(2 * ups[0][1], ups[1][1])


def test_an_unknown_adapter_is_refused_by_name(model: Path, adapters: dict[str, Path]):
    engine = engine_of(model, adapters)
    with pytest.raises(InvalidRequestError, match="adapter is 'sql'; this engine has: whole, narrow"):
        engine.add_request("one", [1], SamplingParams(adapter="sql"))


def test_a_fingerprint_knows_every_byte(model: Path, adapters: dict[str, Path], tmp_path: Path):
    other = write_adapter(tmp_path / "a", model, seed=1, alpha=17)
    given = {"a": str(adapters["whole"]), "b": str(adapters["narrow"]), "c": str(other)}
    assert len(set(load_model(str(model), adapters=given).adapters.fingerprints.values())) == 3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "dora": ({"use_dora": True}, "use_dora"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "whole layers": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "parameters": ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    "something new": ({"use_new_thing": {"x": 1}}, "use_new_thing"),
    "an addition to other weights": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "no rank": ({"r": 0}, "its r is 0"),
    "another rank": ({"r": 4}, "A .8, 64. and B .64, 8.; rank 4 .* need .4, 64. and .64, 4."),
    "another rank of a layer": ({"rank_pattern": {r"layers\.1\..*": 2}}, "model.layers.1.*; rank 2"),
    "a target without weights": ({"target_modules": ["q_proj", "fc1"]}, "target_modules names fc1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_config_asks_and_is_not_computed_is_refused(name: str, model: Path, tmp_path: Path):
    settings, message = REFUSED[name]
    folder = write_adapter(tmp_path / "a", model, seed=1, targets=("q_proj",), **settings)
    with pytest.raises(ModelLoadError, match=f"The adapter 'sql' cannot be served: .*{message}"):
        load_model(str(model), adapters={"sql": str(folder)})


UNREACHED: dict[str, tuple[Callable[[str], str], str]] = {
    "the output layer": (lambda path: "lm_head", "lm_head, the output layer"),
    "a norm": (lambda path: "model.norm", "model.norm, which is no linear layer"),
    "nothing there": (
        lambda path: "model.layers.7.q_proj",
        "model.layers.7.q_proj, which is no linear layer",
    ),
    "experts": (lambda path: "model.experts.0.up_proj", "experts see other rows"),
}


@pytest.mark.parametrize("name", UNREACHED)
def test_other_than_linear_layers_are_refused(name: str, model: Path, tmp_path: Path):
    rename, message = UNREACHED[name]
    folder = write_adapter(tmp_path / "a", model, seed=1, targets=("layers.0.mlp.gate_proj",))
    _rename(folder, rename)
    edit_config(folder, target_modules=".*")
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(model), adapters={"sql": str(folder)})


def test_a_key_of_another_kind_is_refused(model: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "a", model, seed=1, targets=("q_proj",))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(8, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError, match=r"holds .*lora_embedding_A, which is no low-rank addition"):
        load_model(str(model), adapters={"sql": str(folder)})


def test_half_an_adapter_is_refused(model: Path, tmp_path: Path):
    folder = write_adapter(tmp_path / "a", model, seed=1, targets=("q_proj",))
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError, match="holds only lora_A"):
        load_model(str(model), adapters={"sql": str(folder)})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"needs adapter_config\.json and adapter_model\.safetensors"):
        load_model(str(model), adapters={"sql": str(folder)})


def test_a_layer_that_is_read_without_a_call_is_refused(model: Path, adapters: dict[str, Path]):
    """As if attention multiplied by the weight of its projection itself."""
    from transformers.models.llama import modeling_llama

    forward = modeling_llama.LlamaMLP.forward

    def by_weight(self: Any, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x) if self.training else self.down_proj(x @ self.up_proj.weight.t())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama.LlamaMLP, "forward", by_weight)
        with pytest.raises(
            ModelLoadError, match=r"changes model\.layers\.0\.mlp\.gate_proj, which this model reads"
        ):
            load_model(str(model), adapters={"a": str(adapters["whole"])})


def edit_config(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def _rename(folder: Path, rename: Callable[[str], str]) -> None:
    """Every layer that the adapter changes, by its path."""
    file = folder / "adapter_model.safetensors"
    tensors = {}
    for key, tensor in load_file(file).items():
        path, side = key.removeprefix("base_model.model.").rsplit(".lora_", 1)
        tensors[f"base_model.model.{rename(path)}.lora_{side}"] = tensor
    save_file(tensors, file)
