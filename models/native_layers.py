"""On a CPU: all decoder layers of a Llama-like model in one call of the C library (`kernels/cpu/native/layers.c`).

Nothing is taken on trust: the layers must be built of parts that we know, and each gives what the model's own gave, tried
on random rows when it loads. Any other model keeps its own code, around our products and our attention.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.cpu.int8_matmul import Int8Weight
from ..kernels.cpu.native import library as native
from ..kernels.span import Span
from .agreement import agree
from .attention_hook import AttentionCall, StepContext
from .cpu_kv_cache import CpuKVCache
from .kv_cache import CPU_BLOCK_SIZE, LayerShape
from .quantized_linear import QuantizedLinear, SharedLinear, SharedLinearPart

BEFORE_ATTENTION, ATTENTION, AFTER_ATTENTION = 1, 2, 4
# What an MLP's gate goes through, as `layers.c` counts them.
ACTIVATIONS = {"SiLUActivation": 0, "SiLU": 0, "GELUTanh": 1}
TRIED_ROWS = 24
# Two sums in another order round some activations to the neighbouring integer, which moves what follows by about a
# thousandth of its size (measured: 1e-7 for most layers, up to 2e-3); another formula moves it by far more.
LARGEST_DIFFERENCE = 0.01


@dataclass(frozen=True, slots=True)
class _Parts:
    """One decoder layer, taken apart."""

    norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    qkv: QuantizedLinear
    out: QuantizedLinear
    gate_up: QuantizedLinear
    down: QuantizedLinear
    eps: float
    activation: int
    head_dim: int
    index: int


class NativeLayers(nn.Module):
    """Stands in for a model's list of layers, as its only member."""

    def __init__(
        self, parts: list[_Parts], call: AttentionCall, windows: list[int], shape: LayerShape
    ) -> None:
        super().__init__()
        found = native.library()
        assert found is not None
        self._library = found
        self._parts = parts  # keeps what the structures point to
        self._call = call
        self._windows = windows
        first = parts[0]
        self._heads = first.out.quantized.in_features // first.head_dim
        self._layers = (native.Layer * len(parts))(*map(_layer, parts, windows))
        self._stack = native.Stack(
            layers=self._layers,
            hidden=first.qkv.quantized.in_features,
            heads=self._heads,
            kv_heads=shape.num_kv_heads,
            head_dim=first.head_dim,
            intermediate=first.down.quantized.in_features,
            eps=first.eps,
            scaling=call.scaling,
            softcap=call.softcap or 0.0,
            activation=first.activation,
        )
        self._cache: CpuKVCache | None = None
        # What a step computes between its products; grown to the largest step so far.
        self._qkv, self._attended, self._scratch = torch.empty(0, 0), torch.empty(0, 0), torch.empty(0)

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: Any, penstock: StepContext, **kwargs: object
    ) -> Tensor:
        """hidden_states [1, T, H] float32, changed in place."""
        angles = [part[0] for part in position_embeddings]
        rows = torch.arange(hidden_states.shape[1])
        return self.compute(0, len(self), hidden_states, angles, rows, penstock)

    def __len__(self) -> int:
        return len(self._parts)

    def compute(
        self,
        first: int,
        last: int,
        hidden_states: Tensor,
        angles: Any,
        positions: Tensor,
        context: StepContext,
    ) -> Tensor:
        """The layers from `first` to before `last`; `angles`: cosines and sines [P, D], `positions` [T] which are whose."""
        cache, batch = context.kv_cache, context.batch
        assert isinstance(cache, CpuKVCache)
        if cache is not self._cache:
            self._bind(cache)
        x = hidden_states[0].float().contiguous()
        rows = x.shape[0]
        cos, sin = (part.float().contiguous() for part in angles)
        self._stack.rotary_dim = cos.shape[-1]
        self._make_room(rows)
        step = native.Step(
            x=x.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            positions=positions.data_ptr(),
            slots=batch.slot_mapping.data_ptr(),
            spans=batch.dense.address,
            rows=rows,
            num_spans=len(batch.dense),
            qkv=self._qkv.data_ptr(),
            attended=self._attended.data_ptr(),
            scratch=self._scratch.data_ptr(),
            threads=native.num_threads(),
        )
        if cache.sketches:
            self._layer_by_layer(first, last, step, rows, cache, batch)
        else:
            self._compute(step, first, last, BEFORE_ATTENTION | ATTENTION | AFTER_ATTENTION)
        return x[None]

    def _compute(self, step: native.Step, first: int, last: int, parts: int) -> None:
        self._library.penstock_layers(ctypes.byref(self._stack), ctypes.byref(step), first, last, parts)

    def _layer_by_layer(
        self, first: int, last: int, step: native.Step, rows: int, cache: CpuKVCache, batch: Any
    ) -> None:
        """Where some rows may attend to a part of their keys, which is not the library's."""
        heads, kv_heads, dim = self._heads, self._stack.kv_heads, self._stack.head_dim
        qkv = self._qkv[:rows].view(rows, -1, dim).transpose(0, 1)
        query, key = qkv[:heads], qkv[heads : heads + kv_heads]
        attended = self._attended[:rows].view(rows, heads, dim)
        for number in range(first, last):
            self._compute(step, number, number + 1, BEFORE_ATTENTION)
            attended.copy_(
                cache.attend_stored(
                    self._parts[number].index,
                    query,
                    key,
                    batch,
                    scaling=self._call.scaling,
                    sliding_window=self._windows[number] or None,
                    softcap=self._call.softcap,
                    sinks=None,
                )
            )
            self._compute(step, number, number + 1, AFTER_ATTENTION)

    def _bind(self, cache: CpuKVCache) -> None:
        for layer, parts in zip(self._layers, self._parts, strict=True):
            keys, values = cache.layers[parts.index]
            key_scales, value_scales = cache.scales.get(parts.index, (None, None))
            layer.keys, layer.values = native.Pool.of(keys, key_scales), native.Pool.of(values, value_scales)
            self._stack.slots = keys.shape[1]
        self._stack.block_size = cache.block_size
        self._cache = cache

    def _make_room(self, rows: int) -> None:
        if rows <= self._qkv.shape[0]:
            return
        width = self._heads * self._stack.head_dim
        self._qkv = torch.empty(rows, self._parts[0].qkv.quantized.out_features)
        self._attended = torch.empty(rows, width)
        size = self._library.penstock_scratch(ctypes.byref(self._stack), rows)
        self._scratch = torch.empty(size, dtype=torch.uint8)


@torch.inference_mode()
def stack_layers(module: nn.Module, calls: dict[int, AttentionCall], shapes: dict[int, LayerShape]) -> int:
    """Have the library compute the layers of `module` if it can; returns how many it computes then, all or none.

    `calls`, `shapes`: how each layer calls attention, and what it stores, by its index.
    """
    model = getattr(module, "model", None)
    layers = getattr(model, "layers", None)
    if native.library() is None or not isinstance(layers, nn.ModuleList):
        return 0
    rotary = getattr(model, "rotary_emb", None)
    taken = [_take_apart(layer) for layer in layers]
    parts = [own for own in taken if own is not None]
    if len(parts) < len(taken) or not parts or rotary is None:
        return 0
    own_calls = [calls[own.index] for own in parts]
    first, shape = own_calls[0], shapes[parts[0].index]
    alike = {(call.scaling, call.softcap) for call in own_calls} == {(first.scaling, first.softcap)}
    kinds = {(own.head_dim, own.eps, own.activation, _sizes(own)) for own in parts}
    square = shape.key_dim == shape.value_dim == parts[0].head_dim <= native.MOST_HEAD_DIM
    same_shape = all(shapes[own.index] == shape for own in parts)
    if not (alike and square and same_shape) or len(kinds) > 1 or any(call.has_sinks for call in own_calls):
        return 0
    ours = NativeLayers(parts, first, [call.sliding_window or 0 for call in own_calls], shape)
    if not _agree(layers, ours, rotary, shapes):
        return 0
    model.layers = nn.ModuleList([ours])  # type: ignore[union-attr]
    return len(parts)


def _take_apart(layer: nn.Module) -> _Parts | None:
    """None where it is built of other parts than ours, or of more."""
    names = {name for name, _ in layer.named_children()}
    if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    projections = {"q_proj", "k_proj", "v_proj", "o_proj"}
    inside = {name for name, _ in attention.named_children()}  # type: ignore[union-attr]
    if inside not in (projections, projections | {"q_norm", "k_norm"}):
        return None
    if {name for name, _ in mlp.named_children()} - {"act_fn"} != {"gate_proj", "up_proj", "down_proj"}:  # type: ignore[union-attr]
        return None
    qkv = _shared(attention, "q_proj", "k_proj", "v_proj")
    gate_up = _shared(mlp, "gate_proj", "up_proj")
    out, down = attention.o_proj, mlp.down_proj  # type: ignore[union-attr]
    head_dim = getattr(attention, "head_dim", None)
    index = getattr(attention, "layer_idx", None)
    activation = ACTIVATIONS.get(type(getattr(mlp, "act_fn", None)).__name__)
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    if "q_norm" in inside:
        norms += [attention.q_norm, attention.k_norm]  # type: ignore[union-attr]
    weighed = [norm_weight(norm) for norm in norms]
    eps = {own[1] for own in weighed if own is not None}
    if None in weighed or len(eps) != 1 or activation is None:
        return None
    if not isinstance(head_dim, int) or not isinstance(index, int):
        return None
    if not _is_native(qkv) or not _is_native(gate_up) or not _is_native(out) or not _is_native(down):
        return None
    weights = [own[0] for own in weighed if own is not None]
    query_norm, key_norm = weights[2:] or (None, None)
    if query_norm is not None and query_norm.shape[0] != head_dim:
        return None
    assert qkv is not None and gate_up is not None
    return _Parts(
        norm=weights[0],
        mlp_norm=weights[1],
        query_norm=query_norm,
        key_norm=key_norm,
        qkv=qkv,
        out=out,  # type: ignore[arg-type]
        gate_up=gate_up,
        down=down,  # type: ignore[arg-type]
        eps=eps.pop(),
        activation=activation,
        head_dim=head_dim,
        index=index,
    )


def _shared(parent: Any, *names: str) -> QuantizedLinear | None:
    """The one matrix of these linears, which must be all that it holds."""
    parts = [getattr(parent, name) for name in names]
    if not all(isinstance(part, SharedLinearPart) for part in parts):
        return None
    shared: SharedLinear = parts[0].shared
    if any(part.shared is not shared for part in parts):
        return None
    return shared.linear


def _is_native(linear: Any) -> bool:
    weight = getattr(linear, "quantized", None)
    return (
        isinstance(linear, QuantizedLinear) and isinstance(weight, Int8Weight) and weight.native is not None
    )


def norm_weight(norm: Any) -> tuple[Tensor, float] | None:
    """What an RMS norm multiplies by, and its epsilon; None where it computes anything else."""
    weight = dict(norm.named_parameters()).get("weight")
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or weight.dim() != 1 or weight.dtype is not torch.float32 or not isinstance(eps, float):
        return None
    x = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    for multiplier in (weight.detach(), 1 + weight.detach()):
        if agree(plain * multiplier, norm(x)):
            return multiplier.contiguous(), eps
    return None


def _sizes(parts: _Parts) -> tuple[int, ...]:
    linears = (parts.qkv, parts.out, parts.gate_up, parts.down)
    sizes = [
        size for linear in linears for size in (linear.quantized.in_features, linear.quantized.out_features)
    ]
    return (*sizes, int(parts.query_norm is not None))


def _layer(parts: _Parts, window: int) -> native.Layer:
    return native.Layer(
        norm=parts.norm.data_ptr(),
        mlp_norm=parts.mlp_norm.data_ptr(),
        query_norm=None if parts.query_norm is None else parts.query_norm.data_ptr(),
        key_norm=None if parts.key_norm is None else parts.key_norm.data_ptr(),
        qkv=_matrix(parts.qkv),
        out=_matrix(parts.out),
        gate_up=_matrix(parts.gate_up),
        down=_matrix(parts.down),
        window=window,
    )


def _matrix(linear: QuantizedLinear) -> native.Matrix:
    weight = linear.quantized
    assert isinstance(weight, Int8Weight) and weight.native is not None
    return weight.native.matrix.with_bias(linear.bias)


def _agree(
    layers: nn.ModuleList, ours: NativeLayers, rotary: nn.Module, shapes: dict[int, LayerShape]
) -> bool:
    """Layer by layer, whether both add the same to random rows of one sequence."""
    blocks = -(-TRIED_ROWS // CPU_BLOCK_SIZE)
    caches = [CpuKVCache(shapes, blocks, CPU_BLOCK_SIZE, torch.float32) for _ in range(2)]
    spans = [Span(list(range(blocks)), 0, TRIED_ROWS)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, TRIED_ROWS, ours._stack.hidden, generator=generator)
    positions = torch.arange(TRIED_ROWS)[None]
    try:
        angles = rotary(x, position_ids=positions)
        for number, layer in enumerate(layers):
            contexts = [StepContext(cache, cache.prepare(spans)) for cache in caches]
            theirs = layer(
                x.clone(),
                attention_mask=None,
                position_ids=positions,
                past_key_values=None,
                use_cache=False,
                position_embeddings=angles,
                penstock=contexts[0],
            )
            theirs = theirs if isinstance(theirs, Tensor) else theirs[0]
            mine = ours.compute(
                number, number + 1, x.clone(), [part[0] for part in angles], positions[0], contexts[1]
            )
            if not is_close(mine - x, theirs - x):
                return False
            x = torch.randn(x.shape, generator=generator)
    except (AttributeError, TypeError, RuntimeError, ValueError):  # takes or makes something else
        return False
    return True


def is_close(mine: Tensor, theirs: Tensor) -> bool:
    return float((mine - theirs).norm()) <= LARGEST_DIFFERENCE * float(theirs.norm())
