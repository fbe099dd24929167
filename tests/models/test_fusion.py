"""Parts of transformers' layers are swapped where ours agree, in every style there is, and only there."""

import pytest
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from penstock.kernels.dispatch import Backend, choose_backend
from penstock.models.fusion import fuse
from penstock.models.quantized_linear import Handoff, quantize_linears

DEVICE = "cuda" if torch.cuda.is_available() else "interpreter"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
# (what is fused of it, beyond the attention's rotary embedding)
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"rms_norm": 5, "silu_mul": 2, "rotary": 2}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"rms_norm": 9, "silu_mul": 2, "rotary": 2}),
    # Its gate is a GELU: that stays its own.
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"rms_norm": 13, "rotary": 2}),
}


@pytest.fixture
def backend() -> Backend:
    return choose_backend(DEVICE)


def model_of(name: str, backend: Backend) -> nn.Module:
    torch.manual_seed(0)
    kind, config, _ = MODELS[name]
    model = kind(config(**SIZES)).eval().to(backend.device)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.data = torch.randn_like(parameter)
    return model


@torch.inference_mode()
def logits(model: nn.Module, backend: Backend) -> torch.Tensor:
    return model(torch.arange(7, device=backend.device)[None], use_cache=False).logits


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_model_gives_what_it_gave(name, backend):
    model = model_of(name, backend)
    expected = logits(model, backend)
    assert fuse(model, backend) == MODELS[name][2]
    assert float((logits(model, backend) - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_other_models_of_the_same_class_keep_their_own_code(backend):
    fused, other = model_of("llama", backend), model_of("llama", backend)
    own = type(other.model.layers[0].self_attn).forward
    fuse(fused, backend)
    assert other.model.layers[0].self_attn.forward.__func__ is own
    assert "forward" not in vars(other.model.norm) and "forward" in vars(fused.model.norm)


def test_integers_are_handed_over(backend, monkeypatch):
    model = model_of("llama", backend)
    quantize_linears(model, backend, "w8a8")
    unfused = logits(model, backend)
    fuse(model, backend)
    taken: list[bool] = []
    take = Handoff.take
    monkeypatch.setattr(
        Handoff, "take", lambda self, x: (taken.append((ready := take(self, x)) is not None), ready)[1]
    )
    handed = logits(model, backend)
    # Of each layer q/k/v, gate/up and down take them, attention's output and the head's slice of rows do not exist before.
    assert taken.count(True) >= 6 and taken.count(False) >= 2
    monkeypatch.setattr(Handoff, "take", lambda self, x: None)
    assert torch.equal(logits(model, backend), handed), "the same integers, whoever makes them"
    assert float((handed - unfused).abs().max()) < 2e-2 * float(unfused.abs().max())


def test_what_only_looks_alike_stays(backend):
    class ShiftedRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight + 0.5

    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(nn.functional.silu(self.gate_proj(x)).clamp(max=0.1) * self.up_proj(x))

    model = nn.Sequential(ShiftedRMSNorm(), Clipped()).to(backend.device)
    assert fuse(model, backend) == {}


def test_nothing_is_fused_on_a_cpu():
    cpu = choose_backend("cpu")
    assert fuse(model_of("llama", cpu), cpu) == {}
