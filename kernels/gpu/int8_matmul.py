"""W8A8 matmul: exact int32 sums of INT8 products, scaled in float32.

    y[m, n] = (float32(sum_k xq[m, k] * wq[n, k]) * weight_scale[n] - zero[m] * weight_sum[n]) * act_scale[m]
              (+ bias[n]) (+ residual[m, n])
    weight_sum[n] = float32(sum_k wq[n, k]) * weight_scale[n]

A kernel with large tiles for many rows and one that splits K for few: the sums are exact integers, and both end in the same
epilogue compiled without contraction of products and sums. So a row has the same bits from either, in any batch, and the
same as on a CPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantized_rows import QuantizedRows
from .arguments import FLOATS, require
from .config import Config, arch_of, choose
from .quantize_activation import quantize_activation, quantize_weight
from .variant import Variant
from .workspace import Workspace

# |acc| <= K * 128 * 128 must stay inside int32.
MAX_REDUCTION = (2**31 - 1) // (128 * 128)
# Up to this many rows a step is bound by the weights' bytes.
DECODE_ROWS = 64
# Rows are padded to whole 16-byte vectors.
ALIGNMENT = 16
# Enough programs for two on every multiprocessor of an H200; a constant, though the sums would allow any.
DECODE_PROGRAMS = 264

PREFILL = {
    "sm_90": Config(
        {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "GROUP_M": 8}, num_warps=8, num_stages=4
    ),
    "sm_80": Config(
        {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "GROUP_M": 8}, num_warps=8, num_stages=3
    ),
    "gfx942": Config(
        {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 8}, num_warps=8, num_stages=2
    ),
}
DECODE = {
    16: Config({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 256}, num_warps=4, num_stages=4),
    32: Config({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 256}, num_warps=4, num_stages=4),
    64: Config({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128}, num_warps=4, num_stages=4),
}
_workspace = Workspace(torch.int32, 1 << 20)


@dataclass(slots=True)
class Int8Weight:
    """A weight on a GPU: [N, K] int8 with K padded by zeros to whole vectors, its scales and its rows' sums, [N] float32."""

    plain: Tensor
    weight_scale: Tensor
    weight_sum: Tensor
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int8Weight":
        """Symmetric round-to-nearest per output channel, from a float matrix [N, K].

        Raises ValueError when K is too large for exact int32 accumulation.
        """
        quantized, scale = quantize_weight(weight.contiguous(), pad_to=ALIGNMENT)
        return cls._of(quantized, scale[:, 0], *weight.shape)

    @classmethod
    def from_integers(cls, values: Tensor, scales: Tensor) -> "Int8Weight":
        """From [N, K] int8 and [N, 1] float32. The product refuses a K too large for exact int32 accumulation."""
        padded = torch.nn.functional.pad(values, (0, -values.shape[1] % ALIGNMENT))
        return cls._of(padded, scales[:, 0].contiguous(), *values.shape)

    @classmethod
    def _of(cls, plain: Tensor, scale: Tensor, out_features: int, in_features: int) -> "Int8Weight":
        return cls(plain, scale, sum_rows(plain, scale), out_features, in_features)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] in x's dtype."""
        return self.matmul_quantized(quantize_activation(x, pad_to=ALIGNMENT), bias, x.dtype)

    def matmul_quantized(self, x: QuantizedRows, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
        """[M, K'], padded as the weight is -> [M, N]."""
        return int8_matmul(x, self.plain, self.weight_scale, self.weight_sum, bias, out_dtype=out_dtype)


def sum_rows(plain: Tensor, scale: Tensor) -> Tensor:
    """[..., N, K] int8, [..., N] -> [..., N] float32, what each row's integers stand for together."""
    return plain.sum(dim=-1, dtype=torch.int32).float() * scale


def int8_matmul(
    x: QuantizedRows,
    weight: Tensor,
    weight_scale: Tensor,
    weight_sum: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The product above.

    Args:
        x: [M, K].
        weight: [N, K] int8; weight_scale, weight_sum: [N] float32.
        bias: [N] float32; residual: [M, N] float.

    Returns [M, N] in `out_dtype`. Raises ValueError naming an argument that does not fit.
    """
    quantized = x.values
    require("values", quantized, (None, None), ("int8",))
    (m, k), n = quantized.shape, weight.shape[0]
    if k > MAX_REDUCTION:
        raise ValueError(f"K is {k}; int32 accumulation is exact only up to {MAX_REDUCTION}.")
    require("scale", x.scale, (m, 1), ("float32",), quantized)
    require("zero", x.zero, (m, 1), ("float32",), quantized)
    require("weight", weight, (None, k), ("int8",), quantized)
    require("weight_scale", weight_scale, (n,), ("float32",), quantized)
    require("weight_sum", weight_sum, (n,), ("float32",), quantized)
    if bias is not None:
        require("bias", bias, (n,), ("float32",), quantized)
    if residual is not None:
        require("residual", residual, (m, n), FLOATS, quantized)
    out = torch.empty(m, n, dtype=out_dtype, device=quantized.device)
    if not out.numel():
        return out
    tensors = (quantized, x.scale, x.zero, weight, weight_scale, weight_sum, bias, residual, out)
    sizes = (m, n, k, quantized.stride(0), weight.stride(0), 0 if residual is None else residual.stride(0))
    if m > DECODE_ROWS:
        config = choose("int8_matmul", "prefill", PREFILL[arch_of(quantized.device)], quantized.device)
        blocks = triton.cdiv(m, config.tiles["BLOCK_M"]) * triton.cdiv(n, config.tiles["BLOCK_N"])
        _prefill_kernel[(blocks,)](
            *tensors,
            *sizes,
            EVEN_K=k % config.tiles["BLOCK_K"] == 0,
            **config.tiles,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
        return out
    rows = 16 if m <= 16 else 32 if m <= 32 else 64
    config = choose("int8_matmul", f"decode_{rows}", DECODE[rows], quantized.device)
    tiles = triton.cdiv(n, config.tiles["BLOCK_N"])
    splits = split_k(tiles, triton.cdiv(k, config.tiles["BLOCK_K"]))
    sums, arrived = _workspace.of(quantized.device, tiles * rows * config.tiles["BLOCK_N"], tiles)
    _decode_kernel[(tiles, splits)](
        *tensors,
        sums,
        arrived,
        *sizes,
        SPLITS=splits,
        EVEN_K=k % config.tiles["BLOCK_K"] == 0,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
    return out


def split_k(tiles: int, steps: int) -> int:
    """Into how many parts K goes, so that `tiles` of N make about DECODE_PROGRAMS programs; a power of two."""
    splits = 1
    while splits * 2 * tiles <= DECODE_PROGRAMS and splits * 4 <= steps:
        splits *= 2
    return splits


@triton.jit
def _epilogue(
    acc,
    act_scale,
    act_zero,
    weight_scale,
    weight_sum,
    bias,
    residual,
    out,
    sources,
    rows,
    columns,
    inside,
    M,
    N,
    stride_residual,
):
    """Scales `acc` [BM, BN] int32, adds what there is to add, and stores; one rounding after the other, as on a CPU.

    `sources` [BM]: where the scales and zeros of `rows` are; the rows themselves, but for experts.
    """
    w = tl.load(weight_scale + columns, mask=columns < N, other=0.0)
    total = tl.load(weight_sum + columns, mask=columns < N, other=0.0)
    a = tl.load(act_scale + sources, mask=rows < M, other=0.0)
    zero = tl.load(act_zero + sources, mask=rows < M, other=0.0)
    y = (acc.to(tl.float32) * w[None, :] - zero[:, None] * total[None, :]) * a[:, None]
    if bias is not None:
        y += tl.load(bias + columns, mask=columns < N, other=0.0)[None, :]
    if residual is not None:
        at = rows[:, None].to(tl.int64) * stride_residual + columns[None, :]
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + rows[:, None].to(tl.int64) * N + columns[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _prefill_kernel(
    quantized,
    act_scale,
    act_zero,
    weight,
    weight_scale,
    weight_sum,
    bias,
    residual,
    out,
    M,
    N,
    K,
    stride_quantized,
    stride_weight,
    stride_residual,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """One program per [BLOCK_M, BLOCK_N] tile, in groups of GROUP_M row tiles that share their weights in L2."""
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = program // (GROUP_M * tiles_n)
    group_size = min(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + (program % (GROUP_M * tiles_n)) % group_size
    tile_n = (program % (GROUP_M * tiles_n)) // group_size
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows past the end read the first ones again: cheaper than a mask on every load, and never stored.
    ks = tl.arange(0, BLOCK_K)
    x = quantized + (rows % M)[:, None].to(tl.int64) * stride_quantized + ks[None, :]
    w = weight + (columns % N)[None, :].to(tl.int64) * stride_weight + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            xq, wq = tl.load(x), tl.load(w)
        else:
            xq = tl.load(x, mask=ks[None, :] < K - start, other=0)
            wq = tl.load(w, mask=ks[:, None] < K - start, other=0)
        acc = tl.dot(xq, wq, acc, out_dtype=tl.int32)
        x += BLOCK_K
        w += BLOCK_K
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    _epilogue(
        acc,
        act_scale,
        act_zero,
        weight_scale,
        weight_sum,
        bias,
        residual,
        out,
        rows,
        rows,
        columns,
        inside,
        M,
        N,
        stride_residual,
    )


@triton.jit
def _decode_kernel(
    quantized,
    act_scale,
    act_zero,
    weight,
    weight_scale,
    weight_sum,
    bias,
    residual,
    out,
    sums,
    arrived,
    M,
    N,
    K,
    stride_quantized,
    stride_weight,
    stride_residual,
    SPLITS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program per tile of N and part of K; the last of a tile to arrive finishes it.

    Parts are added up by integer atomics, whose order does not matter. The last one leaves zeros behind, so the workspace
    needs no clearing between launches.
    """
    tile, part = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, BLOCK_M)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    steps = tl.cdiv(K, BLOCK_K)
    first = part * steps // SPLITS
    last = (part + 1) * steps // SPLITS
    ks = tl.arange(0, BLOCK_K)
    x = quantized + (rows % M)[:, None].to(tl.int64) * stride_quantized + ks[None, :] + first * BLOCK_K
    w = weight + (columns % N)[None, :].to(tl.int64) * stride_weight + ks[:, None] + first * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(first, last):
        if EVEN_K:
            wq = tl.load(w, eviction_policy="evict_first")
            xq = tl.load(x)
        else:
            wq = tl.load(w, mask=ks[:, None] < K - step * BLOCK_K, other=0, eviction_policy="evict_first")
            xq = tl.load(x, mask=ks[None, :] < K - step * BLOCK_K, other=0)
        acc = tl.dot(xq, wq, acc, out_dtype=tl.int32)
        x += BLOCK_K
        w += BLOCK_K
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    if SPLITS == 1:
        _epilogue(
            acc,
            act_scale,
            act_zero,
            weight_scale,
            weight_sum,
            bias,
            residual,
            out,
            rows,
            rows,
            columns,
            inside,
            M,
            N,
            stride_residual,
        )
    else:
        own = sums + tile * BLOCK_M * BLOCK_N + rows[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        tl.atomic_add(own, acc, sem="relaxed")
        tl.debug_barrier()  # every thread's sums are on their way before this program counts as arrived
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.atomic_xchg(own, tl.zeros((BLOCK_M, BLOCK_N), tl.int32), sem="relaxed")
            tl.store(arrived + tile, 0)
            _epilogue(
                total,
                act_scale,
                act_zero,
                weight_scale,
                weight_sum,
                bias,
                residual,
                out,
                rows,
                rows,
                columns,
                inside,
                M,
                N,
                stride_residual,
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
        "residual": "*bf16",
        "out": "*bf16",
    }
    sizes = dict.fromkeys(("M", "N", "K", "stride_quantized", "stride_weight", "stride_residual"), "i32")

    def variant(
        name: str, case: str, kernel: Any, config: Config, extra: dict[str, str], **constexprs: Any
    ) -> Variant:
        tile = "x".join(str(config.tiles[f"BLOCK_{axis}"]) for axis in "MNK")
        return Variant(
            f"int8_matmul {name} {tile}",
            kernel,
            {**tensors, **extra, **sizes},
            {**config.tiles, **constexprs},
            config.num_warps,
            config.num_stages,
            mma="s8",
            fp_fusion=False,
            unaligned=frozenset({"M"}),
            case=case,
        )

    for even in (True, False):
        ragged = "" if even else " ragged K"
        config = choose("int8_matmul", "prefill", PREFILL[arch], None)
        yield variant(f"prefill{ragged}", "prefill", _prefill_kernel, config, {}, EVEN_K=even)
        for rows, default in DECODE.items():
            case = f"decode_{rows}"
            config = choose("int8_matmul", case, default, None)
            workspace = {"sums": "*i32", "arrived": "*i32"}
            yield variant(f"decode{ragged}", case, _decode_kernel, config, workspace, EVEN_K=even, SPLITS=4)
