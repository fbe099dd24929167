"""A model as what it says next after each token of a text: one made by transformers, or one that is served.

Logits come in runs of rows, never all of a text's at once: a long text's, over a large vocabulary, would fill the memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...kernels.span import Span
from ...models.attention_hook import StepContext
from ...models.kv_cache import KVCache, default_block_size, make_kv_cache
from ...models.loading import LoadedModel


class Scorer(Protocol):
    """What can be compared.

    Attributes:
        name: what messages and tables call it.
        vocab_size: of its logits; max_tokens: the longest text it takes.
    """

    name: str
    vocab_size: int
    max_tokens: int

    def logits(self, ids: list[int], rows: int) -> Iterator[Tensor]:
        """[at most `rows`, vocab_size] float32 of what follows each of `ids`, in order; each run valid until the next."""


class PlainScorer:
    """A transformers model as it is, on whatever device it is; it is left in the mode (training or not) that it was in."""

    def __init__(self, module: Any, name: str) -> None:
        config = module.config.get_text_config()
        self.name = name
        self.vocab_size: int = config.vocab_size
        self.max_tokens: int = getattr(config, "max_position_embeddings", None) or 1 << 30
        self._module = module

    # Not inference mode: what a model keeps of such a pass (rotary angles, say) could not be trained with afterwards.
    @torch.no_grad()
    def logits(self, ids: list[int], rows: int) -> Iterator[Tensor]:
        from transformers import DynamicCache

        one_run = len(ids) <= rows
        cache = None if one_run else DynamicCache(config=self._module.config)
        tokens = torch.tensor([ids], device=self._module.device)
        for start in range(0, len(ids), rows):
            run = tokens[:, start : start + rows]
            with _not_training(self._module):
                output = self._module(input_ids=run, past_key_values=cache, use_cache=not one_run)
            yield output.logits[0].float()


@contextmanager
def _not_training(module: nn.Module) -> Iterator[None]:
    """Without dropout. Ends with each pass, as the same module may be under two scorers."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class ServedScorer:
    """A model computed by the kernels that serve it.

    Args:
        kv_dtype: of the stored keys and values, torch.int8 for INT8 KV; None: as the model is served.

    Raises ValueError where this machine's attention cannot read such a cache.
    """

    def __init__(self, model: LoadedModel, name: str, kv_dtype: torch.dtype | None = None) -> None:
        self.name = name
        self.vocab_size = model.vocab_size
        self.max_tokens = model.max_model_len
        self._model = model
        served = torch.int8 if model.kv_cache_dtype == "int8" else model.dtype
        self._kv_dtype = kv_dtype or served
        self._block_size = default_block_size(model.backend)
        self._num_blocks = 0
        self._cache = self._make_cache(1)

    @torch.inference_mode()
    def logits(self, ids: list[int], rows: int) -> Iterator[Tensor]:
        needed = -(-len(ids) // self._block_size)
        if needed > self._num_blocks:
            self._cache = self._make_cache(needed)
        table = list(range(1, needed + 1))  # behind the null block
        device = self._model.backend.device
        self._model.adapters.use({})
        for start in range(0, len(ids), rows):
            run = ids[start : start + rows]
            context = StepContext(self._cache, self._cache.prepare([Span(table, start, len(run))]))
            logits = self._model.forward(
                torch.tensor([run], device=device),
                torch.arange(start, start + len(run), device=device)[None],
                torch.arange(len(run), device=device),
                context,
            )
            yield logits.float()

    def _make_cache(self, num_blocks: int) -> KVCache:
        self._num_blocks = num_blocks
        backend, layers = self._model.backend, self._model.layers
        return make_kv_cache(backend, layers, num_blocks + 1, self._block_size, self._kv_dtype)
