"""On a GPU: replaces parts of transformers' layers by kernels that read the bytes once. Nothing is taken on trust: a part is
swapped only where ours gives what it gave, tried on random rows at load, and keeps its own code everywhere else.

Where a product of INT8 activations follows, norms and gates quantize what they write and hand the integers over: the next
linear takes them when it is given the very tensor they were made of, else it quantizes for itself. The integers are
the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.dispatch import Backend
from .agreement import agree, random_rows
from .quantized_experts import QuantizedExperts
from .quantized_linear import Handoff, QuantizedLinear, SharedLinearPart

ROWS = 3
# Some experts clamp what goes into their gate, by limits of 7 to 100.
GATE_SCALES = (1.0, 1000.0)
ROTARY = "apply_rotary_pos_emb"


@dataclass(frozen=True, slots=True)
class NormStyle:
    """How a model's RMS norm rounds and what it adds to its weight; see `kernels.gpu.rms_norm`."""

    offset: float
    rounds_twice: bool


NORM_STYLES = (NormStyle(0.0, True), NormStyle(1.0, False), NormStyle(0.0, False))


@torch.inference_mode()
def fuse(model: nn.Module, backend: Backend) -> dict[str, int]:
    """Swaps what can be; returns how many parts each kernel now serves."""
    if backend.kind != "triton":
        return {}
    served = {"rms_norm": 0, "silu_mul": 0, "rotary": 0}
    handoff = _hand_over(model)
    widths = {linear.quantized.in_features for linear in _linears(model)} if handoff else set()
    for module in list(model.modules()):
        if type(module).__name__.endswith("RMSNorm"):
            served["rms_norm"] += _fuse_norm(module, backend, handoff, widths)
        elif all(
            isinstance(getattr(module, name, None), nn.Module)
            for name in ("gate_proj", "up_proj", "down_proj")
        ):
            served["silu_mul"] += _fuse_gate(module, backend, handoff)
        elif isinstance(module, QuantizedExperts):
            served["silu_mul"] += _fuse_experts_gate(module, backend, handoff)
        elif ROTARY in _names(type(module).forward):
            served["rotary"] += _fuse_rotary(module, backend)
    return {kernel: count for kernel, count in served.items() if count}


def _linears(model: nn.Module) -> list[QuantizedLinear]:
    found = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    parts = (module for module in model.modules() if isinstance(module, SharedLinearPart))
    return [*found, *{id(part.shared): part.shared.linear for part in parts}.values()]


def _hand_over(model: nn.Module) -> Handoff | None:
    """Have everything that multiplies INT8 activations look there first; None where there is nothing."""
    from ..kernels.gpu.grouped_int8_matmul import GroupedInt8Weight
    from ..kernels.gpu.int8_matmul import Int8Weight

    readers: list[QuantizedLinear | QuantizedExperts] = []
    readers += [linear for linear in _linears(model) if isinstance(linear.quantized, Int8Weight)]
    experts = (module for module in model.modules() if isinstance(module, QuantizedExperts))
    readers += [module for module in experts if isinstance(module.down, GroupedInt8Weight)]
    handoff = Handoff() if readers else None
    for reader in readers:
        reader.handoff = handoff
    return handoff


def _fuse_norm(module: nn.Module, backend: Backend, handoff: Handoff | None, widths: set[int]) -> bool:
    from ..kernels.gpu.int8_matmul import ALIGNMENT
    from ..kernels.gpu.rms_norm import rms_norm

    parameters = dict(module.named_parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = parameters.get("weight")
    if weight is None or len(parameters) > 1 or weight.dim() != 1 or not isinstance(eps, float):
        return False
    pad_to = ALIGNMENT if handoff is not None and weight.shape[0] in widths else None

    def normalize(style: NormStyle, x: Tensor) -> Tensor:
        y, rows = rms_norm(
            x.reshape(-1, x.shape[-1]),
            weight,
            eps,
            offset=style.offset,
            rounds_twice=style.rounds_twice,
            pad_to=pad_to,
        )
        y = y.view(x.shape)
        if handoff is not None and rows is not None:
            handoff.give(y, rows)
        return y

    x = random_rows(1, ROWS, weight.shape[0], like=weight, backend=backend)
    expected = module(x)
    for style in NORM_STYLES:
        ours = partial(normalize, style)
        if agree(ours(x), expected):
            module.forward = ours
            return True
    return False


def _fuse_gate(module: nn.Module, backend: Backend, handoff: Handoff | None) -> bool:
    from ..kernels.gpu.int8_matmul import ALIGNMENT, Int8Weight
    from ..kernels.gpu.silu_mul import silu_mul

    gate_proj, up_proj, down_proj = (getattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
    weight = next(iter(module.parameters()), None)
    width = _in_features(gate_proj)
    if width is None:
        return False
    is_int8 = isinstance(getattr(down_proj, "quantized", None), Int8Weight)
    pad_to = ALIGNMENT if handoff is not None and is_int8 else None

    def gated(x: Tensor) -> Tensor:
        gate, up = gate_proj(x), up_proj(x)
        y, rows = silu_mul(gate.view(-1, gate.shape[-1]), up.view(-1, up.shape[-1]), pad_to=pad_to)
        y = y.view(gate.shape)
        if handoff is not None and rows is not None:
            handoff.give(y, rows)
        out: Tensor = down_proj(y)
        return out

    x = random_rows(1, ROWS, width, like=weight, backend=backend)
    try:
        agrees = agree(gated(x), module(x))
    except (TypeError, RuntimeError, ValueError):  # takes or makes something else
        return False
    if agrees:
        module.forward = gated
    return agrees


def _fuse_experts_gate(module: QuantizedExperts, backend: Backend, handoff: Handoff | None) -> bool:
    from ..kernels.gpu.grouped_int8_matmul import GroupedInt8Weight
    from ..kernels.gpu.int8_matmul import ALIGNMENT
    from ..kernels.gpu.silu_mul import silu_mul

    if not isinstance(module.down, GroupedInt8Weight) or not module.style.has_gate:
        return False
    assert handoff is not None

    def gated(rows: Tensor) -> Tensor:
        y, quantized = silu_mul(*rows.chunk(2, dim=-1), pad_to=ALIGNMENT)
        assert quantized is not None
        handoff.give(y, quantized)
        return y

    like = torch.empty(0, dtype=module.dtype)
    rows = random_rows(ROWS, 2 * module.down.in_features, like=like, backend=backend)
    agrees = all(agree(gated(scale * rows), module.activate(scale * rows)) for scale in GATE_SCALES)
    if agrees:
        module.activate = gated
    return agrees


def _fuse_rotary(module: nn.Module, backend: Backend) -> bool:
    """The layer gets a copy of its own forward that finds our function under the name: nobody else's is touched."""
    forward = type(module).forward
    original = forward.__globals__[ROTARY]
    head_dim = getattr(module, "head_dim", None)
    if not isinstance(head_dim, int):
        return False
    weight = next(iter(module.parameters()), None)
    query, key = (random_rows(1, heads, ROWS, head_dim, like=weight, backend=backend) for heads in (2, 1))
    angles = torch.rand(1, ROWS, head_dim // 2, device=backend.device).repeat(1, 1, 2)
    cos, sin = angles.cos().to(query.dtype), angles.sin().to(query.dtype)
    ours = partial(_turned, original)
    try:
        pairs = zip(ours(query, key, cos, sin), original(query, key, cos, sin), strict=True)
        agrees = all(agree(mine, theirs) for mine, theirs in pairs)
    except (TypeError, RuntimeError, ValueError):  # takes or makes something else
        return False
    if agrees:
        names = {**forward.__globals__, ROTARY: ours}
        copy = FunctionType(
            forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
        )
        copy.__kwdefaults__ = forward.__kwdefaults__
        module.forward = MethodType(copy, module)
    return agrees


def _turned(
    original: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Ours for the engine's one flat row; `original` for what it is never given there."""
    from ..kernels.gpu.rotary import rotary

    if args or kwargs or query.dim() != 4 or query.shape[0] != 1 or cos.dim() != 3 or cos.shape[0] != 1:
        return original(query, key, cos, sin, *args, **kwargs)
    turned_query, turned_key = rotary(query[0], key[0], cos[0], sin[0])
    return turned_query[None], turned_key[None]


def _names(function: Any) -> tuple[str, ...]:
    """The global names that a plain function reads."""
    code = getattr(function, "__code__", None)
    return () if code is None or ROTARY not in function.__globals__ else code.co_names


def _in_features(linear: nn.Module) -> int | None:
    quantized = getattr(linear, "quantized", None)
    found = getattr(linear if quantized is None else quantized, "in_features", None)
    return found if isinstance(found, int) else None
