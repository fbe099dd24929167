"""The one place where transformers' models call our attention.

transformers looks an attention function up by name; ours is "penstock". Every forward pass carries a `StepContext`
as the keyword `penstock`, which transformers hands down to the function untouched. No mask function is registered while
serving, so transformers builds no mask; a probe asks for the rules that masks would be made by.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelLoadError
from .kv_cache import KVCache, LayerShape

NAME = "penstock"

# Keyword arguments that cannot change what attention computes here: positions are applied before it, the batch is
# described by the step context, and nothing is trained.
NEUTRAL_KWARGS = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "dropout",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


# (batch, head, position of the query, position of the key) -> whether it is seen.
MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


# Further calls of one layer in one pass keep their keys and values in places of their own, so far apart.
AGAIN = 1 << 16


@dataclass(slots=True)
class _Pass:
    """Counts how often each layer of one forward pass has attended."""

    calls: dict[int, int] = field(default_factory=dict, kw_only=True)

    def place(self, layer: int) -> int:
        """Where the KV cache keeps what this call of `layer` stores: a layer may attend several times."""
        number = self.calls.get(layer, 0)
        self.calls[layer] = number + 1
        return layer + number * AGAIN


@dataclass(slots=True)
class StepContext(_Pass):
    """What attention needs to know of one forward pass: the cache, and what its `prepare` gave.

    Attributes:
        states: of the rows whose logits are wanted the final hidden states [S, H], once they are computed; only where the
            pass `keeps_states`.
    """

    kv_cache: KVCache
    batch: Any
    keeps_states: bool = False
    states: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """How a layer calls attention, its tensors apart."""

    scaling: float
    sliding_window: int | None
    softcap: float | None
    has_sinks: bool


@dataclass(slots=True)
class ProbeContext(_Pass):
    """Stands in for a `StepContext` at load: records what each layer stores, and computes plain causal attention.

    `alone`: every row attends to itself only.
    """

    alone: bool = False
    layers: dict[int, LayerShape] = field(default_factory=dict)
    arguments: dict[int, AttentionCall] = field(default_factory=dict)
    rules: dict[int, MaskRule] = field(default_factory=dict)

    @property
    def windowed(self) -> set[int]:
        return {layer for layer, call in self.arguments.items() if call.sliding_window is not None}

    @property
    def num_layers(self) -> int:
        return len({place % AGAIN for place in self.layers})


def register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention_forward)


def carry(model: nn.Module) -> int:
    """Hand the context that `model` is called with to its attention modules, past layers that drop keyword arguments.

    Returns how many get it. For a model that one thread calls at a time.
    """
    held: dict[str, Any] = {}

    def hold(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        held["penstock"] = kwargs.get("penstock")

    def give(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, held | kwargs

    attentions = [module for module in model.modules() if _takes_any_keyword(module)]
    model.register_forward_pre_hook(hold, with_kwargs=True)
    for module in attentions:
        module.register_forward_pre_hook(give, with_kwargs=True)
    return len(attentions)


def _takes_any_keyword(module: nn.Module) -> bool:
    kinds = (parameter.kind for parameter in inspect.signature(module.forward).parameters.values())
    return isinstance(getattr(module, "layer_idx", None), int) and inspect.Parameter.VAR_KEYWORD in kinds


@contextmanager
def masks_with_rules() -> Iterator[None]:
    """Inside, transformers' masks for our attention are of two tokens, and carry the rule that they would be made by."""
    from transformers import AttentionMaskInterface

    AttentionMaskInterface.register(NAME, _mask_with_rule)
    try:
        yield
    finally:
        AttentionMaskInterface._global_mapping.pop(NAME, None)  # there is no public way back


def _mask_with_rule(*, q_length: int, kv_length: int, mask_function: MaskRule, **kwargs: Any) -> Tensor:
    mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool, device=kwargs.get("device")).tril()
    mask.rule = mask_function  # type: ignore[attr-defined]  # lost in whatever a model computes of it, as it should be
    return mask


def is_computed(rule: MaskRule, window: int | None, context_length: int) -> bool:
    """Whether `rule` is what attention computes for `window`: no key after the query, none that is `window` or more before.

    Tried at both ends of the window and between, for queries all over the context.
    """
    last = context_length - 1
    queries = torch.linspace(0, last, 65).long()
    distances = torch.cat([torch.linspace(0, last, 65).long(), torch.tensor([-1, 1, 2])])
    if window is not None:
        distances = torch.cat([distances, torch.tensor([window - 1, window, window + 1])])
    q = queries.repeat_interleave(len(distances))
    k = q - distances.repeat(len(queries))
    q, k = q[(k >= 0) & (k <= last)], k[(k >= 0) & (k <= last)]
    seen = k <= q
    if window is not None:
        seen &= k > q - window
    try:
        return _agrees(rule, q, k, seen)
    except IndexError:  # overlays for images look at the tokens that there are: the probe's
        q, k = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        return _agrees(rule, q, k, (k <= q) & (q - k < (window or 2)))


def _agrees(rule: MaskRule, q: Tensor, k: Tensor, seen: Tensor) -> bool:
    zeros = torch.zeros_like(q)
    return torch.equal(rule(zeros, zeros, q, k).expand_as(seen).cpu(), seen)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    penstock: StepContext | ProbeContext,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """query [1, Hq, T, D], key and value [1, Hkv, T, D] -> ([1, T, Hq, Dv], None).

    Raises ModelLoadError, naming it, on an argument that would change the result and that we do not compute.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]  # nn.Module types attributes as Tensor | Module
    where = type(module).__name__
    rule = getattr(attention_mask, "rule", None)
    if isinstance(penstock, ProbeContext):
        _refuse_unknown(where, kwargs)
        if attention_mask is not None and rule is None:
            raise ModelLoadError(
                f"{where} brings a mask of its own to attention, which Penstock does not apply."
            )
        says_otherwise = is_causal is False or getattr(module, "is_causal", True) is False
        # BigBirdPegasus never says that it is, but its mask is.
        if says_otherwise and not (rule and is_computed(rule, sliding_window, context_length=64)):
            raise ModelLoadError(f"{where} is not causal; only causal language models can be served.")
    if scaling is None:
        scaling = float(query.shape[-1]) ** -0.5
    out = attend(
        layer,
        query,
        key,
        value,
        rule,
        penstock,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return out, None


def attend(
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rule: MaskRule | None,
    context: StepContext | ProbeContext,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [1, Hq, T, D], key and value [1, Hkv, T, D] -> [1, T, Hq, Dv].

    `rule`: what the model's mask was made by, looked at when the model is loaded.
    """
    place = context.place(layer)
    if isinstance(context, ProbeContext):
        context.arguments[place] = AttentionCall(scaling, sliding_window, softcap, sinks is not None)
        if rule is not None:
            context.rules[place] = rule
        context.layers[place] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        if context.alone:
            out = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        else:
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=True
            )
        return out.transpose(1, 2).contiguous()
    out = context.kv_cache.attend(
        place,
        query[0],
        key[0],
        value[0],
        context.batch,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=sinks,
    )
    return out[None]


def _refuse_unknown(where: str, kwargs: dict[str, object]) -> None:
    unknown = sorted(
        name for name, given in kwargs.items() if name not in NEUTRAL_KWARGS and given is not None
    )
    if unknown:
        raise ModelLoadError(
            f"{where} passes {', '.join(unknown)} to attention, which Penstock does not compute; "
            "serve this model with another engine."
        )
