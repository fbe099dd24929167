"""A cut model computes what its parent does with the same parts switched off, whatever kind of block it has."""

import pytest
import torch
import transformers

from penstock.compress.prune.cut import Kept, cut
from penstock.compress.prune.structure import Size, structure_of
from penstock.errors import CompressError

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": [1, 2, 3],  # as many as layers
}
CHANNELS, GROUPS, LAYERS = torch.tensor([1, 2, 5, 7, 11, 20, 30, 40]), torch.tensor([1]), [0, 2]


def model(kind: str, **settings):
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**SIZES | settings)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@torch.no_grad()
def logits(module, ids):
    return module(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def switch_off(module) -> None:
    """Everything but CHANNELS, GROUPS and LAYERS, by weights of zero."""
    for index, layer in enumerate(module.model.layers):
        mlp, attention = layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight
        if index not in LAYERS:
            mlp.zero_()
            attention.zero_()
        mlp[:, [i for i in range(48) if i not in CHANNELS]] = 0
        attention[:, :24] = 0  # the first group's two heads of 12


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Mistral", {}),
        ("Qwen2", {}),
        ("Qwen3", {}),
        ("Gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 12}),
    ],
)
def test_a_cut_model_is_its_parent_with_parts_switched_off(kind, settings, tmp_path):
    parent = model(kind, **settings)
    if settings.get(
        "attention_bias"
    ):  # what a layer that goes adds by its biases is no part of this comparison
        for part in (parent.model.layers[1].self_attn.o_proj, parent.model.layers[1].mlp.down_proj):
            torch.nn.init.zeros_(part.bias)
    structure = structure_of(parent)
    assert structure.size == Size(3, 48, 2)
    ids = torch.randint(60, (2, 9))
    before = logits(parent, ids)
    small = cut(parent, structure, [(index, Kept(CHANNELS, GROUPS)) for index in LAYERS])
    assert torch.equal(logits(parent, ids), before)

    small.save_pretrained(tmp_path)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    config = found.config
    assert (config.intermediate_size, config.num_hidden_layers) == (8, 2)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 12)
    assert config.eos_token_id == [1, 2, 3]
    assert found.num_parameters() < parent.num_parameters() / 2 + 60 * 32
    switch_off(parent)
    torch.testing.assert_close(logits(found, ids), logits(parent, ids), atol=1e-5, rtol=1e-4)
    assert (
        found.generate(ids[:1], max_new_tokens=3, do_sample=False).shape[1] > 9
    )  # its cache has as many layers


def test_fitted_weights_take_the_place_of_those_cut():
    parent = model("Llama")
    down, o = torch.randn(32, 8), torch.randn(32, 24)
    small = cut(parent, structure_of(parent), [(i, Kept(CHANNELS, GROUPS, down, o)) for i in range(3)])
    for layer in small.model.layers:
        assert torch.equal(layer.mlp.down_proj.weight, down)
        assert torch.equal(layer.self_attn.o_proj.weight, o)


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("GPT2", {"n_embd": 32, "n_head": 4}, "GPT2LMHeadModel cannot be pruned: layer 0 has no linear layer gate_proj"),
        ("Phi3", {}, "Phi3ForCausalLM cannot be pruned: layer 0 has no linear layer gate_proj"),
        ("Mixtral", {"num_local_experts": 2}, "MixtralForCausalLM has experts in its layers"),
        ("Olmo2", {"head_dim": None}, "q_norm.weight of its attention goes over all heads at once"),
    ],
)  # fmt: skip
def test_what_is_built_otherwise_is_refused_by_name(kind, settings, says):
    given = {name: value for name, value in (SIZES | settings).items() if value is not None}
    config = getattr(transformers, f"{kind}Config")(**given)
    names = {"GPT2": "GPT2LMHeadModel"}
    with pytest.raises(CompressError, match=says):
        structure_of(getattr(transformers, names.get(kind, f"{kind}ForCausalLM"))(config))
