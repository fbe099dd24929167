"""W8A8 matmul of experts: rows that follow one another belong to one expert, and are multiplied with its weight.

    y[s, n] = (float32(sum_k xq[t, k] * wq[e, n, k]) * weight_scale[e, n] - zero[t] * weight_sum[e, n]) * act_scale[t]
              (+ bias[e, n])

with t = token[s], for offsets[e] <= s < offsets[e + 1], in one launch. How many rows each expert got is known to the device
alone: the grid is large enough for every way of sharing them out, and a program finds out whose tile is its own.

The sums are exact integers and the epilogue is that of `int8_matmul`, so a row has the bits that it gives with the expert's
weight, in any batch and by either configuration.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized_rows import QuantizedRows
from ..routing import Routing
from .arguments import require
from .config import Config, arch_of, choose
from .int8_matmul import ALIGNMENT, MAX_REDUCTION, PREFILL, _epilogue, sum_rows
from .quantize_activation import quantize_activation, quantize_weight
from .variant import Variant

# Up to this many rows for each expert, shared out evenly, few rows of a large tile would be in use.
DECODE_ROWS = 32

DECODE = Config({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 256, "GROUP_M": 8}, num_warps=4, num_stages=4)


@dataclass(slots=True)
class GroupedInt8Weight:
    """A weight for each expert: [E, N, K'] int8 with K padded by zeros to whole vectors, scales and sums [E, N] float32."""

    plain: Tensor
    weight_scale: Tensor
    weight_sum: Tensor
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "GroupedInt8Weight":
        """Symmetric round-to-nearest per output channel, from float matrices [E, N, K]."""
        experts, out_features, in_features = weight.shape
        quantized, scales = quantize_weight(weight.reshape(-1, in_features), pad_to=ALIGNMENT)
        plain, scale = quantized.view(experts, out_features, -1), scales.view(experts, out_features)
        return cls(plain, scale, sum_rows(plain, scale), out_features, in_features)

    def matmul(self, x: Tensor, routing: Routing, bias: Tensor | None = None) -> Tensor:
        """[T, K] float, bias [E, N] float32 -> [S, N] in x's dtype; within a routing T is S."""
        return self.matmul_quantized(quantize_activation(x, pad_to=ALIGNMENT), routing, bias, x.dtype)

    def matmul_quantized(
        self, x: QuantizedRows, routing: Routing, bias: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """[T, K'], padded as the weights are -> [S, N]."""
        return grouped_int8_matmul(
            x,
            self.plain,
            self.weight_scale,
            self.weight_sum,
            routing.offsets,
            routing.tokens,
            bias,
            out_dtype=out_dtype,
        )


def grouped_int8_matmul(
    x: QuantizedRows,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    offsets: Tensor,
    tokens: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The product above.

    Args:
        x: [T, K].
        weight: [E, N, K] int8; weight_scale, weight_sum: [E, N] float32.
        offsets: [E + 1] int32, from 0 to S.
        tokens: [S] int32, below T; None where row s takes row s, and S is T.
        bias: [E, N] float32.

    Returns [S, N] in `out_dtype`. Raises ValueError naming an argument that does not fit.
    """
    quantized = x.values
    require("values", quantized, (None, None), ("int8",))
    (t, k), (experts, n) = quantized.shape, weight.shape[:2]
    if k > MAX_REDUCTION:
        raise ValueError(f"K is {k}; int32 accumulation is exact only up to {MAX_REDUCTION}.")
    require("scale", x.scale, (t, 1), ("float32",), quantized)
    require("zero", x.zero, (t, 1), ("float32",), quantized)
    require("weight", weight, (None, None, k), ("int8",), quantized)
    require("weight_scale", weight_scale, (experts, n), ("float32",), quantized)
    require("weight_sum", weight_sum, (experts, n), ("float32",), quantized)
    require("offsets", offsets, (experts + 1,), ("int32",), quantized)
    if tokens is not None:
        require("tokens", tokens, (None,), ("int32",), quantized)
    if bias is not None:
        require("bias", bias, (experts, n), ("float32",), quantized)
    rows = t if tokens is None else tokens.shape[0]
    out = torch.empty(rows, n, dtype=out_dtype, device=quantized.device)
    if not out.numel():
        return out
    if rows <= DECODE_ROWS * experts:
        config = choose("grouped_int8_matmul", "decode", DECODE, quantized.device)
    else:
        default = PREFILL[arch_of(quantized.device)]
        config = choose("grouped_int8_matmul", "prefill", default, quantized.device)
    tiles_m = most_tiles(rows, experts, config.tiles["BLOCK_M"])
    _kernel[(tiles_m * triton.cdiv(n, config.tiles["BLOCK_N"]),)](
        quantized,
        x.scale,
        x.zero,
        weight,
        weight_scale,
        weight_sum,
        bias,
        tokens,
        offsets,
        out,
        n,
        k,
        tiles_m,
        quantized.stride(0),
        weight.stride(0),
        weight.stride(1),
        EXPERTS=experts,
        EXPERTS_BLOCK=triton.next_power_of_2(experts),
        EVEN_K=k % config.tiles["BLOCK_K"] == 0,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
    return out


def most_tiles(rows: int, experts: int, block: int) -> int:
    """How many tiles of `block` rows there are at most: every expert may leave one unfilled, and each has a row."""
    return min(rows, -(-rows // block) + experts)


@triton.jit
def _kernel(
    quantized,
    act_scale,
    act_zero,
    weight,
    weight_scale,
    weight_sum,
    bias,
    tokens,
    offsets,
    out,
    N,
    K,
    tiles_m,
    stride_quantized,
    stride_expert,
    stride_weight,
    EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One program per [BLOCK_M, BLOCK_N] tile of one expert, in groups of GROUP_M row tiles; those left over do nothing."""
    program = tl.program_id(0)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = program // (GROUP_M * tiles_n)
    group_size = min(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + (program % (GROUP_M * tiles_n)) % group_size
    tile_n = (program % (GROUP_M * tiles_n)) // group_size

    experts = tl.arange(0, EXPERTS_BLOCK)
    first = tl.load(offsets + experts, mask=experts < EXPERTS, other=0)
    last = tl.load(offsets + experts + 1, mask=experts < EXPERTS, other=0)
    tiles = (last - first + BLOCK_M - 1) // BLOCK_M
    expert = tl.sum((tl.cumsum(tiles, 0) <= tile_m).to(tl.int32), 0)
    if expert >= EXPERTS:
        return
    before = tl.sum(tl.where(experts < expert, tiles, 0), 0)
    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    rows = start + (tile_m - before) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows past the expert's end read its first one again: cheaper than a mask on every load, and never stored.
    sources = tl.where(rows < end, rows, start)
    if tokens is not None:
        sources = tl.load(tokens + sources)
    ks = tl.arange(0, BLOCK_K)
    x = quantized + sources[:, None].to(tl.int64) * stride_quantized + ks[None, :]
    w = weight + expert.to(tl.int64) * stride_expert
    w += (columns % N)[None, :].to(tl.int64) * stride_weight + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(0, K, BLOCK_K):
        if EVEN_K:
            xq, wq = tl.load(x), tl.load(w)
        else:
            xq = tl.load(x, mask=ks[None, :] < K - step, other=0)
            wq = tl.load(w, mask=ks[:, None] < K - step, other=0)
        acc = tl.dot(xq, wq, acc, out_dtype=tl.int32)
        x += BLOCK_K
        w += BLOCK_K
    inside = (rows < end)[:, None] & (columns < N)[None, :]
    own = expert * N
    if bias is not None:
        bias += own
    _epilogue(
        acc,
        act_scale,
        act_zero,
        weight_scale + own,
        weight_sum + own,
        bias,
        None,
        out,
        sources,
        rows,
        columns,
        inside,
        end,
        N,
        0,
    )


def variants(arch: str) -> Iterator[Variant]:
    tensors = {
        "quantized": "*i8",
        "act_scale": "*fp32",
        "act_zero": "*fp32",
        "weight": "*i8",
        "weight_scale": "*fp32",
        "weight_sum": "*fp32",
        "bias": "*fp32",
        "offsets": "*i32",
        "out": "*bf16",
    }
    names = ("N", "K", "tiles_m", "stride_quantized", "stride_expert", "stride_weight")
    sizes = dict.fromkeys(names, "i32")
    for case, default in (("prefill", PREFILL[arch]), ("decode", DECODE)):
        config = choose("grouped_int8_matmul", case, default, None)
        tile = "x".join(str(config.tiles[f"BLOCK_{axis}"]) for axis in "MNK")
        for gathers, even in ((True, True), (False, True), (True, False)):
            yield Variant(
                f"grouped_int8_matmul {case} {tile}{' gathering' if gathers else ''}{'' if even else ' ragged K'}",
                _kernel,
                {**tensors, **({"tokens": "*i32"} if gathers else {}), **sizes},
                {
                    **config.tiles,
                    **({} if gathers else {"tokens": None}),
                    "EVEN_K": even,
                    "EXPERTS": 128,
                    "EXPERTS_BLOCK": 128,
                },
                config.num_warps,
                config.num_stages,
                mma="s8",
                fp_fusion=False,
                unaligned=frozenset({"tiles_m"}),
                case=case,
            )
