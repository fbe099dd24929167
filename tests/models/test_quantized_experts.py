"""Experts are quantized where ours compute what theirs do, in every layout there is, and only there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_mixture import KINDS, save_mixture
from torch import nn
from transformers.integrations.moe import use_experts_implementation

from penstock.kernels.cpu.grouped_int8_matmul import GroupedInt8Weight
from penstock.kernels.dispatch import choose_backend, describe
from penstock.models.attention_hook import ProbeContext
from penstock.models.loading import load_model
from penstock.models.quantized_experts import QuantizedExperts, quantize_experts

DEVICE = "cuda" if torch.cuda.is_available() else "interpreter"
EXPERTS, WIDTH, INNER = 5, 24, 18
CPU = choose_backend("cpu")


class Plain(nn.Module):
    """As transformers' own, by the definition: a loop over tokens and their experts."""

    has_up_bias = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = EXPERTS
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, WIDTH) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) * 0.3)
        self.act_fn = nn.SiLU()

    def one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        gate, up = (self.gate_up_proj[expert] @ x).chunk(2)
        return self.down_proj[expert] @ (self.act_fn(gate) * up)

    def forward(self, x: torch.Tensor, choices: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [
                sum(share * self.one(row, int(expert)) for expert, share in zip(chosen, weighed, strict=True))
                for row, chosen, weighed in zip(x, choices, shares, strict=True)
            ]
        )


class Biased(Plain):
    """Transposed, with biases, interleaved and clamped."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.gate_up_proj = nn.Parameter(self.gate_up_proj.detach().transpose(1, 2).contiguous())
        self.down_proj = nn.Parameter(self.down_proj.detach().transpose(1, 2).contiguous())
        self.gate_up_proj_bias = nn.Parameter(torch.randn(EXPERTS, 2 * INNER))
        self.down_proj_bias = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def _apply_gate(self, rows: torch.Tensor) -> torch.Tensor:
        return self.act_fn(rows[..., ::2].clamp(max=2.0)) * (rows[..., 1::2].clamp(-2.0, 2.0) + 1)

    def one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        rows = self._apply_gate(x @ self.gate_up_proj[expert] + self.gate_up_proj_bias[expert])
        return rows @ self.down_proj[expert] + self.down_proj_bias[expert]


class Ungated(Plain):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        del self.gate_up_proj
        self.up_proj = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH) * 0.3)

    def one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        return self.down_proj[expert] @ self.act_fn(self.up_proj[expert] @ x)


class Normed(Plain):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_expert_norm = nn.RMSNorm(WIDTH)

    def one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        return self.post_expert_norm(super().one(x, expert))


class SecretlyScaled(Plain):
    def one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        return super().one(x, expert) * 1.01


class SecretlyClamped(Plain):
    """Only large activations tell it from a plain one; its gate does not say so."""

    def one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        gate, up = (self.gate_up_proj[expert] @ x).chunk(2)
        return self.down_proj[expert] @ (self.act_fn(gate.clamp(max=10.0)) * up)


def marked(kind: type[Plain], **marks: bool) -> nn.Module:
    """`kind` behind transformers' interface, set to its own forward."""
    torch.manual_seed(1)
    own = type(f"{kind.__name__}Experts", (kind,), {"forward": kind.forward, "__init__": kind.__init__})
    return use_experts_implementation(own, **marks)(SimpleNamespace(_experts_implementation="eager"))


STYLES = {
    "plain": (Plain, {}),
    "biased": (Biased, {"is_transposed": True, "has_bias": True, "is_concatenated": False}),
    "ungated": (Ungated, {"has_gate": False}),
    "normed": (Normed, {"has_post_expert_norm": True}),
}
# How far quantized experts may be from theirs, in the norm; seen: up to 0.017, 0.011 and 0.17.
LIMITS = {"w8a8": 0.03, "w8a16": 0.02, "w4a16": 0.25}


@pytest.mark.parametrize("device", ["cpu", DEVICE])
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("style", STYLES)
def test_every_style_computes_nearly_what_it_did(style: str, precision: str, device: str):
    backend = choose_backend(device)
    kind, marks = STYLES[style]
    model = nn.Sequential(marked(kind, **marks)).to(backend.device)
    x = torch.randn(33, WIDTH, device=backend.device)
    choices = torch.rand(33, EXPERTS, device=backend.device).topk(3).indices
    shares = torch.rand(33, 3, device=backend.device)
    with torch.inference_mode():
        expected = model[0](x, choices, shares)
        served = quantize_experts(model, backend, precision)
        found = model[0](x, choices, shares)
    assert list(served.values()) == [1] and "torch" not in served
    assert isinstance(model[0], QuantizedExperts)
    assert not [name for name, p in model.named_parameters() if "proj" in name], "the floats are gone"
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < LIMITS[precision], error


@pytest.mark.parametrize(
    ("kind", "marks"),
    [
        (SecretlyScaled, {}),
        (SecretlyClamped, {}),
        (Biased, {"is_transposed": True, "has_bias": False}),
        (Biased, {"is_transposed": False, "has_bias": True}),
        (Ungated, {"has_gate": True}),
        (Normed, {}),
    ],
)
def test_what_ours_do_not_compute_stays_as_stored(kind: type[Plain], marks: dict[str, bool]):
    model = nn.Sequential(marked(kind, **marks))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert quantize_experts(model, CPU, "w8a8") == {"torch": 1}
    assert not isinstance(model[0], QuantizedExperts)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_experts_that_say_nothing_of_themselves_stay_as_stored():
    class SilentExperts(Plain):
        pass

    assert quantize_experts(nn.Sequential(SilentExperts(None)), CPU, "w8a8") == {"torch": 1}
    assert quantize_experts(nn.Sequential(nn.Conv1d(3, 4, 5)), CPU, "w8a8") == {}


def logits(folder: Path, quantize: str, **settings: str) -> torch.Tensor:
    model = load_model(str(folder), quantize=quantize, **settings)
    ids = torch.arange(5, 45, device=model.backend.device)[None]
    with torch.inference_mode():
        out = model.module(
            input_ids=ids,
            position_ids=torch.arange(40, device=ids.device)[None],
            use_cache=False,
            penstock=ProbeContext(),
        )
    return out.logits[0].float().cpu()


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_mixture_answers_nearly_as_before(kind: str, tmp_path: Path):
    """At the median position: where quantization turns a close choice of experts, a random model answers otherwise."""
    folder = save_mixture(kind, tmp_path)
    model = load_model(str(folder), quantize="w8a8")
    assert model.experts == {"grouped_int8_matmul": 2}
    said = describe(model.backend, model.precision, model.fused, model.experts)
    assert "experts of 2 layers grouped_int8_matmul (w8a8)" in said
    assert not [name for name, parameter in model.module.named_parameters() if parameter.dim() == 3]
    expected, found = logits(folder, "none"), logits(folder, "w8a8")
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert 0 < float(errors.median()) < 0.12, errors


def test_what_stays_as_stored_is_said():
    said = describe(CPU, "w4a16", {}, {"weight_only_matmul": 3, "torch": 1})
    assert said.endswith(
        "experts of 3 layers weight_only_matmul (w4a16), experts of 1 layers torch (as stored)"
    )


def test_routers_stay_as_stored(tmp_path: Path):
    model = load_model(str(save_mixture("mixtral", tmp_path)), quantize="w8a8").module
    stored = load_model(str(tmp_path)).module
    for name in ("model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"):
        assert torch.equal(model.get_parameter(name), stored.get_parameter(name))


def test_large_experts_are_packed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed: list[int] = []
    own = GroupedInt8Weight.__module__.replace("grouped_int8_matmul", "int8_matmul")
    monkeypatch.setattr(
        f"{own}.Int8Weight.pack", lambda self, *, keep_plain: packed.append(self.out_features)
    )
    monkeypatch.setattr("penstock.models.quantized_linear.KEEP_PLAIN_WEIGHTS", 0)
    load_model(str(save_mixture("mixtral", tmp_path)), quantize="w8a8")
    assert packed.count(2 * 56) == 2 * 6, "the gate and up of six experts in each of two layers"


def test_experts_in_bf16(tmp_path: Path):
    folder = save_mixture("qwen3_moe", tmp_path)
    assert load_model(str(folder), quantize="w8a8", dtype="bfloat16").experts == {"grouped_int8_matmul": 2}
    expected, found = (logits(folder, quantize, dtype="bfloat16") for quantize in ("none", "w8a8"))
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert 0 < float(errors.median()) < 0.12, errors


def test_experts_that_do_not_say_whether_they_have_a_norm_have_none():
    """transformers 5.17 has no such mark."""
    model = nn.Sequential(marked(Plain))
    owner = model[0] if "has_post_expert_norm" in vars(model[0]) else type(model[0])
    delattr(owner, "has_post_expert_norm")
    with torch.inference_mode():
        assert "torch" not in quantize_experts(model, choose_backend("cpu"), "w8a8")
