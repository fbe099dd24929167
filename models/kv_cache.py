"""Where keys and values are kept, and attention over them: what the engine asks of any machine's KV cache.

Which block belongs to whom is the block manager's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.cpu.sparse_attention import SparseTelemetry
from ..kernels.dispatch import Backend
from ..kernels.span import PAGE_SIZE, Span

CPU_BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer stores per token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVCache(Protocol):
    """The KV of all layers in blocks of `block_size` tokens, in the layout that the machine's attention reads."""

    block_size: int

    @property
    def sparse_telemetry(self) -> SparseTelemetry:
        """Sums over all sparse decodes and prompts so far."""

    def prepare(self, spans: Sequence[Span]) -> Any:
        """What `attend` needs to know of a step whose rows are those of `spans`; once, before the first layer."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: Any,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Store the rows' key [Hkv, T, D] and value [Hkv, T, Dv], then attend: query [Hq, T, D] -> [T, Hq, Dv].

        `batch` comes from `prepare`. See `kernels.cpu.paged_attention` for the rest.
        """

    def broken_blocks(self, block_ids: list[int]) -> list[int]:
        """Those that hold NaN or infinity."""


def default_block_size(backend: Backend) -> int:
    """Tokens per block: on a GPU a page, one copy of the tensor memory engine; on a CPU what wastes little of a pool."""
    return PAGE_SIZE if backend.kind == "triton" else CPU_BLOCK_SIZE


def make_kv_cache(
    backend: Backend,
    shapes: dict[int, LayerShape],
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    *,
    sparse: str | None = None,
) -> KVCache:
    """`dtype`: of what is stored; int8 quantizes per token and head. `sparse`: decodes and prompts may
    attend to a part of the keys, decodes by an estimate from "keys", "min_max" or "mean_std" summaries.

    Raises ValueError when the machine's attention cannot read such a cache.
    """
    if backend.kind == "triton":
        from .gpu_kv_cache import GpuKVCache

        return GpuKVCache(shapes, num_blocks, block_size, dtype, backend.device, sparse=sparse)
    from .cpu_kv_cache import CpuKVCache

    if sparse not in (None, "keys"):
        raise ValueError(
            f"sparse_attention.estimate is '{sparse}', which is for GPUs; on a CPU leave it at 'keys'."
        )
    return CpuKVCache(shapes, num_blocks, block_size, dtype, sparse=sparse is not None)


def bytes_per_token(shapes: dict[int, LayerShape], dtype: torch.dtype) -> int:
    """Of what is stored; INT8 has a float32 scale for each token, head, key and value."""
    scales = 8 * sum(shape.num_kv_heads for shape in shapes.values()) if dtype is torch.int8 else 0
    return sum(shape.elements for shape in shapes.values()) * dtype.itemsize + scales
