"""A whole forward pass around `NativeLayers`: embedding, layers, last norm and vocabulary, without the modules in between.

Serves where it gives the logits that the model's own code gives around the same layers, tried when it loads; a model that
scales its embedding or caps its logits keeps that code.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.cpu.int8_matmul import Int8Weight
from ..kernels.cpu.native import library as native
from ..kernels.span import Span
from .attention_hook import StepContext
from .cpu_kv_cache import CpuKVCache
from .kv_cache import CPU_BLOCK_SIZE, LayerShape
from .native_layers import NativeLayers, is_close, norm_weight

TRIED_TOKENS = 7
FIRST_POSITIONS = 512


class NativeForward:
    """From token ids to logits."""

    def __init__(self, model: Any, head: Any, norm: tuple[Tensor, float]) -> None:
        self._layers: NativeLayers = model.layers[0]
        self._embedding: Tensor = model.embed_tokens.weight
        self._rotary = model.rotary_emb
        self._norm, self._eps = norm
        self._head = head.quantized.native
        found = native.library()
        assert found is not None
        self._library = found
        self._angles: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def __call__(self, input_ids: Tensor, positions: Tensor, rows: Tensor, context: StepContext) -> Tensor:
        """input_ids, positions [1, T]; logits of `rows` [S] -> [S, V] float32."""
        x = nn.functional.embedding(input_ids, self._embedding).float()
        last = int(positions.max()) + 1
        x = self._layers.compute(0, len(self._layers), x, self._angles_to(last), positions[0], context)
        if context.keeps_states:
            context.states = self._normalised(x[0, rows])
        out = torch.empty(rows.shape[0], self._head.out_features)
        scratch = self._head.scratch(rows.shape[0])
        self._library.penstock_head(
            x.data_ptr(),
            rows.data_ptr(),
            rows.shape[0],
            self._norm.data_ptr(),
            self._eps,
            ctypes.byref(self._head.matrix),
            out.data_ptr(),
            scratch.data_ptr(),
            native.num_threads(),
        )
        return out

    def _normalised(self, x: Tensor) -> Tensor:
        """As the library does on the way to the vocabulary."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._eps) * self._norm

    def _angles_to(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least so many positions: they depend on nothing else in the lengths that are served."""
        if num_positions > self._angles[0].shape[0]:
            count = max(FIRST_POSITIONS, 1 << (num_positions - 1).bit_length())
            cos, sin = self._rotary(torch.empty(1, 1, 1), position_ids=torch.arange(count)[None])
            self._angles = cos[0].float().contiguous(), sin[0].float().contiguous()
        return self._angles


@torch.inference_mode()
def forward_of(module: Any, shapes: dict[int, LayerShape]) -> NativeForward | None:
    """None where the model does anything else around its layers, which are native."""
    model, head = module.model, module.lm_head
    names = {name for name, _ in model.named_children()}
    norm = norm_weight(getattr(model, "norm", None))
    weight = getattr(head, "quantized", None)
    if names != {"embed_tokens", "layers", "norm", "rotary_emb"} or norm is None:
        return None
    if not isinstance(weight, Int8Weight) or weight.native is None or head.bias is not None:
        return None
    ours = NativeForward(model, head, norm)
    tokens = torch.arange(TRIED_TOKENS)[None] + 1
    positions = torch.arange(TRIED_TOKENS)[None]
    rows = torch.tensor([2, TRIED_TOKENS - 1])
    cache = CpuKVCache(shapes, 1, CPU_BLOCK_SIZE, torch.float32)
    context = StepContext(cache, cache.prepare([Span([0], 0, TRIED_TOKENS)]))
    theirs = module(
        input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=rows, penstock=context
    )
    return ours if is_close(ours(tokens, positions, rows, context), theirs.logits[0]) else None
