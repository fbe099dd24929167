"""A quantized model whose keys and values are rounded to 8 bits, computed by transformers.

To judge INT8 KV by, on a machine whose own kernels keep KV as it is computed.
"""

from typing import Any

from torch import Tensor, nn

from ...errors import CompressError
from ..evaluate import PlainScorer
from ..plain_model import load_plain
from ..quantized_tensor import QuantizedTensor
from .layer import BlockResult, install
from .rounding import round_key_or_value
from .whole import Quantized

NAME = "penstock_int8_kv"
# Its function is every model's own, within the model's file.
EAGER = "eager"


def scorer_with_int8_kv(model: str, quantized: Quantized) -> PlainScorer:
    """In float32. Raises CompressError for a model whose attention is not transformers' to exchange."""
    module = load_plain(model, dtype="float32").module
    layers: dict[str, QuantizedTensor] = dict(quantized.layers)
    if quantized.head is not None:
        head = module.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach())  # no longer the embedding's
        (name,) = [name for name, part in module.named_modules() if part is head]
        layers[name] = quantized.head
    install(module, BlockResult(layers, quantized.changed))
    _round_kv(module)
    return PlainScorer(module, "the quantized model")


def _round_kv(module: Any) -> None:
    """By the largest magnitude of each token and head, as `store_kv` does on a GPU."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kind = module.config._attn_implementation
    if kind == EAGER or not module._supports_attention_backend:
        raise CompressError(
            f"{type(module).__name__} computes attention by itself, so INT8 KV cannot be judged on a CPU; quantize it on a "
            "machine with a GPU, or without --kv.",
            param="kv",
        )
    attention: Any = ALL_ATTENTION_FUNCTIONS[kind]

    def rounding(part: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
        return attention(part, query, round_key_or_value(key), round_key_or_value(value), *rest, **named)

    ALL_ATTENTION_FUNCTIONS.register(NAME, rounding)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[kind])
    module.set_attn_implementation(NAME)
