"""The one place where transformers' models call our attention.

transformers looks an attention function up by name; ours is "penstock". Every forward pass carries a `StepContext`
as the keyword `penstock`, which transformers hands down to the function untouched. No mask function is registered, so
transformers builds no mask.
"""

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


@dataclass(slots=True)
class StepContext:
    """What attention needs to know of one forward pass: the cache, and what its `prepare` gave."""

    kv_cache: KVCache
    batch: Any


@dataclass(slots=True)
class ProbeContext:
    """Stands in for a `StepContext` at load: records what each layer stores, and computes plain causal attention."""

    layers: dict[int, LayerShape] = field(default_factory=dict)
    windowed: set[int] = field(default_factory=set)


def register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention_forward)


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
    if scaling is None:
        scaling = float(query.shape[-1]) ** -0.5
    if isinstance(penstock, ProbeContext):
        _refuse_unknown(module, attention_mask, is_causal, kwargs)
        if layer in penstock.layers:
            raise ModelLoadError(
                f"{type(module).__name__} attends twice in layer {layer}, which has one place for keys and values."
            )
        if sliding_window is not None:
            penstock.windowed.add(layer)
        penstock.layers[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None
    out = penstock.kv_cache.attend(
        layer,
        query[0],
        key[0],
        value[0],
        penstock.batch,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return out[None], None


def _refuse_unknown(
    module: nn.Module, attention_mask: Tensor | None, is_causal: bool | None, kwargs: dict[str, object]
) -> None:
    where = type(module).__name__
    unknown = sorted(
        name for name, given in kwargs.items() if name not in NEUTRAL_KWARGS and given is not None
    )
    if unknown:
        raise ModelLoadError(
            f"{where} passes {', '.join(unknown)} to attention, which Penstock does not compute; "
            "serve this model with another engine."
        )
    if attention_mask is not None:
        raise ModelLoadError(f"{where} brings a mask of its own to attention, which Penstock does not apply.")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ModelLoadError(f"{where} is not causal; only causal language models can be served.")
