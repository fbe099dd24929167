"""Replaces the experts of a mixture by quantized ones, module by module, so that both copies never stand side by side.

transformers keeps all experts of a layer in 3-D parameters, and marks such a module with how they are laid out. Ours go by
those marks and the module's own gate. Whether that is what the module computes is tried at load, in its own floats; where
it is not, the experts stay as stored and transformers computes them.
"""

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels.dispatch import Backend, GroupedWeight, experts_kernel, quantize_grouped
from ..kernels.per_expert import PerExpertWeight
from ..kernels.routing import Routing, combine
from .agreement import agree, random_rows
from .quantized_linear import Handoff, let_go

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What transformers' `use_experts_implementation` says of every module that may be computed by another function.
MARKS = ("has_gate", "has_bias", "is_transposed")
# Experts on trial, the first and the last among them: all have one code, and to try all would take longer than to quantize.
TRIAL_EXPERTS = 4
TRIAL_CHOICES = 2
# Some models clamp large activations.
TRIAL_SCALES = (1.0, 8.0)
AS_STORED = "torch"


class QuantizedExperts(nn.Module):
    """The sum over a token's choices of share * down(gate(up(x))), with `up` and `down` in some precision."""

    def __init__(
        self,
        style: Any,
        up: GroupedWeight,
        up_bias: Tensor | None,
        down: GroupedWeight,
        down_bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """`style`: the module that had these experts, for its gate and what else it does with rows.

        Biases are [E, N] float32; `dtype` is that of the activations on a GPU.
        """
        super().__init__()
        self.style = style
        self.up, self.up_bias = up, up_bias
        self.down, self.down_bias = down, down_bias
        self.dtype = dtype
        # Not every version of transformers marks it, as most models have none.
        self.has_norm: bool = getattr(style, "has_post_expert_norm", False)
        self.activate: Any = style._apply_gate if style.has_gate else style.act_fn
        self.handoff: Handoff | None = None

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[T, H], [T, k], [T, k] -> [T, H]."""
        routing = Routing.of(top_k_index, self.style.num_experts)
        rows = self.activate(self.up.matmul(hidden_states, routing, self.up_bias))
        routing = routing.within()
        ready = None if self.handoff is None else self.handoff.take(rows)
        if ready is not None:
            product: Any = self.down  # of W8A8, as only such experts have a handoff
            rows = product.matmul_quantized(ready, routing, self.down_bias, rows.dtype)
        else:
            rows = self.down.matmul(rows, routing, self.down_bias)
        if self.has_norm:
            rows = self.style.post_expert_norm(rows)
        return combine(rows, routing, top_k_weights)


@dataclass(slots=True)
class _AsStored:
    """One expert's weight [N, K] in its own floats."""

    weight: Tensor

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, self.weight, None if bias is None else bias.to(x.dtype))


@torch.inference_mode()
def quantize_experts(model: "PreTrainedModel", backend: Backend, precision: str) -> dict[str, int]:
    """Swap the experts of every layer where ours agree; returns how many layers' experts each kernel now serves."""
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    served = {experts_kernel(precision): 0, AS_STORED: 0}
    for parent in list(model.modules()):
        for name, experts in list(parent.named_children()):
            if not type(experts).__name__.endswith("Experts") or not any(_stacks(experts)):
                continue
            own = [parameter for parameter in experts.parameters() if users[id(parameter)] == 1]
            stored = [parameter.detach() for parameter in own if parameter.device.type == "cpu"]
            experts.to(backend.device)
            if not _are_understood(experts, backend):
                served[AS_STORED] += 1
                continue
            setattr(parent, name, _quantized(experts, backend, precision))
            served[experts_kernel(precision)] += 1
            for weight in stored:
                if weight.dim() == 3 and weight.is_contiguous():
                    let_go(weight)
    return {kernel: count for kernel, count in served.items() if count}


def _stacks(module: nn.Module) -> list[str]:
    """The parameters of `module` that hold a matrix for each expert."""
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3]


def _are_understood(experts: Any, backend: Backend) -> bool:
    """Whether what ours compute of these experts, with their weights as stored, is what they compute."""
    if not all(isinstance(getattr(experts, mark, None), bool) for mark in MARKS):
        return False
    up_name = _up_name(experts)
    if sorted(_stacks(experts)) != sorted(("down_proj", up_name)):
        return False
    up = _matrices(experts, up_name)
    count = up.shape[0]
    if count != experts.num_experts or count < TRIAL_CHOICES or min(up.shape) < 2:
        return False
    ours = QuantizedExperts(
        experts,
        PerExpertWeight([_AsStored(weight) for weight in up]),
        _bias(experts, up_name),
        PerExpertWeight([_AsStored(weight) for weight in _matrices(experts, "down_proj")]),
        _bias(experts, "down_proj"),
        up.dtype,
    )
    tried = torch.linspace(0, count - 1, min(count, TRIAL_EXPERTS), device=up.device).long()
    choices = torch.stack([tried.roll(step) for step in range(TRIAL_CHOICES)], dim=1)
    shares = random_rows(len(tried), TRIAL_CHOICES, like=up, backend=backend)
    definition = inspect.unwrap(type(experts).forward)  # the model's own, not what stands in for it
    for scale in TRIAL_SCALES:
        x = scale * random_rows(len(tried), up.shape[2], like=up, backend=backend)
        try:
            if not agree(ours(x, choices, shares), definition(experts, x, choices, shares)):
                return False
        except (AttributeError, TypeError, RuntimeError, ValueError):  # takes or makes something else
            return False
    return True


def _quantized(experts: Any, backend: Backend, precision: str) -> QuantizedExperts:
    """Ours in the place of `experts`, which lose their parameters."""
    dtype = experts.down_proj.dtype
    weights, biases = [], []
    for name in (_up_name(experts), "down_proj"):
        weights.append(quantize_grouped(backend, precision, _matrices(experts, name)))
        biases.append(_bias(experts, name))
        delattr(experts, name)
        if experts.has_bias:
            delattr(experts, f"{name}_bias")
    return QuantizedExperts(experts, weights[0], biases[0], weights[1], biases[1], dtype)


def _up_name(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _matrices(experts: Any, name: str) -> Tensor:
    """[E, N, K], a view."""
    weight: Tensor = getattr(experts, name).detach()
    return weight.transpose(1, 2) if experts.is_transposed else weight


def _bias(experts: Any, name: str) -> Tensor | None:
    return getattr(experts, f"{name}_bias").detach().float() if experts.has_bias else None
