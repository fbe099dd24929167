"""W8A16 and W4A16: float activations, weights in 8 or 4 bits, for models that INT8 activations hurt.

    y[m, n] = sum over groups g of scale[n, g] * sum_(k in g) x[m, k] * (wq[n, k] - zero[n, g])
        (+ bias[n]) (+ residual[m, n])

W8A16 has one group for each output channel and no zero points, W4A16 a group for each 32, 64 or 128 of its elements, with or
without them. Differences of two such integers are exact in every float type of x.

The product is computed as W x^T: the weights, made floats in registers, are the operand that a matrix instruction may take
from there, and a few tokens cost no more rows of it than they are.

Floating-point sums depend on their order, so the order is fixed by the weight alone: K is cut into the same parts, and their
sums are added one after the other, whether many programs share the parts (few tokens) or one goes through them all (many).
So a row has the same bits in any batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantize_weight import GROUP, GROUPS, pack_int4, quantize_weight, whole_groups
from .arguments import FLOATS, require
from .config import Config, arch_of, choose
from .variant import Variant
from .workspace import Workspace

# Up to this many tokens a step is bound by the weights' bytes: programs share the parts of K.
DECODE_TOKENS = 64
# What parts of K are counted by; tiles may be larger.
PART_CHANNELS = 64
DECODE_PROGRAMS = 264
# K advances by one group, of W8A16 by so much.
STEP = GROUP

DECODE = {
    tokens: Config({"BLOCK_N": 64, "BLOCK_M": tokens}, num_warps=4, num_stages=4) for tokens in (16, 32, 64)
}
PREFILL = Config({"BLOCK_N": 128, "BLOCK_M": 64}, num_warps=8, num_stages=3)
# Where the sums of 8-bit weights leave enough registers.
WIDE_PREFILL = Config({"BLOCK_N": 128, "BLOCK_M": 128}, num_warps=8, num_stages=3)
_workspace = Workspace(torch.float32, 1 << 22)


@dataclass(slots=True)
class Int8WeightOnly:
    """[N, K'] int8, and the scale of each output channel, [N, 1] float32."""

    plain: Tensor
    scales: Tensor
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int8WeightOnly":
        """From a float matrix [N, K]."""
        return cls(*quantize_weight(weight, 8, None), *weight.shape)

    @classmethod
    def from_integers(cls, values: Tensor, scales: Tensor) -> "Int8WeightOnly":
        """From [N, K] int8 and [N, 1] float32."""
        whole, whole_scales, _ = whole_groups(values, scales)
        return cls(whole, whole_scales, *values.shape)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] in x's dtype."""
        return weight_only_matmul(x, self.plain, self.scales, bias)


@dataclass(slots=True)
class Int4Weight:
    """[N, K' / 2] uint8 as `pack_int4` makes it, and of groups of 32, 64 or 128 scales, [N, K' / group] float32, and zero
    points, as many int8, or None where all are 0."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None
    out_features: int
    in_features: int

    @classmethod
    def quantize(cls, weight: Tensor) -> "Int4Weight":
        """From a float matrix [N, K]."""
        quantized, scales = quantize_weight(weight, 4, GROUP)
        return cls(pack_int4(quantized), scales, None, *weight.shape)

    @classmethod
    def from_integers(cls, values: Tensor, scales: Tensor, zeros: Tensor | None = None) -> "Int4Weight":
        """From [N, K] int8 in -8 .. 7, [N, K / group] float32 and, where zero is not 0, as many int8 in -8 .. 7."""
        whole, whole_scales, whole_zeros = whole_groups(values, scales, zeros)
        packed = pack_int4(whole, whole.shape[1] // whole_scales.shape[1])
        return cls(packed, whole_scales, whole_zeros, *values.shape)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[M, K] float, bias [N] float32 -> [M, N] in x's dtype."""
        return weight_only_matmul(x, self.packed, self.scales, bias, zeros=self.zeros)


def weight_only_matmul(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    zeros: Tensor | None = None,
) -> Tensor:
    """The product above.

    Args:
        x: [M, K] float.
        weight: [N, K'] int8 with scales [N, 1], or [N, K' / 2] uint8 with scales [N, K' / group]; K' is K rounded up to 128.
        bias: [N] float32; residual: [M, N] float.
        zeros: [N, K' / group] int8 from -8 to 7, of 4 bits; None: all are 0.

    Returns [M, N] in x's dtype. Raises ValueError naming an argument that does not fit.
    """
    require("x", x, (None, None), FLOATS)
    (m, k), n = x.shape, weight.shape[0]
    width = triton.cdiv(k, GROUP) * GROUP
    bits = 4 if weight.dtype is torch.uint8 else 8
    require("weight", weight, (n, width * bits // 8), ("int8", "uint8"), x)
    step = STEP if bits == 8 else _group_of(width, scales)
    steps = width // step
    require("scales", scales, (n, steps if bits == 4 else 1), ("float32",), x)
    if zeros is not None:
        require("zeros", zeros, (n, steps if bits == 4 else 0), ("int8",), x)
    if bias is not None:
        require("bias", bias, (n,), ("float32",), x)
    if residual is not None:
        require("residual", residual, (m, n), FLOATS, x)
    out = torch.empty(m, n, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    parts = parts_of(n, steps)
    shared = m <= DECODE_TOKENS and parts > 1
    if m <= DECODE_TOKENS:
        tokens = 16 if m <= 16 else 32 if m <= 32 else 64
        config = choose("weight_only_matmul", f"decode_{bits}_{tokens}", DECODE[tokens], x.device)
    else:
        default = _prefill(arch_of(x.device), bits)
        config = choose("weight_only_matmul", f"prefill_{bits}", default, x.device)
    tiles_n = triton.cdiv(n, config.tiles["BLOCK_N"])
    tiles_m = triton.cdiv(m, config.tiles["BLOCK_M"])
    area = config.tiles["BLOCK_N"] * config.tiles["BLOCK_M"]
    sums, arrived = _workspace.of(x.device, tiles_n * parts * area, tiles_n) if shared else (None, None)
    _kernel[(tiles_n * tiles_m, parts if shared else 1)](
        x,
        weight,
        scales,
        zeros,
        bias,
        residual,
        out,
        sums,
        arrived,
        m,
        n,
        k,
        steps,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        BITS=bits,
        PARTS=parts,
        EVEN_K=k == width,
        STEP=step,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
    return out


def _group_of(width: int, scales: Tensor) -> int:
    """The one of GROUPS that so many scales are of; the default one where they are of none, for the message of it."""
    return next((group for group in GROUPS if scales.shape[-1] * group == width), GROUP)


def _prefill(arch: str, bits: int) -> Config:
    return WIDE_PREFILL if arch == "sm_90" and bits == 8 else PREFILL


def parts_of(out_features: int, steps: int) -> int:
    """Into how many parts K goes; a power of two that depends on the weight's shape alone."""
    tiles = triton.cdiv(out_features, PART_CHANNELS)
    parts = 1
    while parts * 2 * tiles <= DECODE_PROGRAMS and parts * 4 <= steps:
        parts *= 2
    return parts


@triton.jit
def _activations(at, k, K, EVEN_K: tl.constexpr):
    return tl.load(at) if EVEN_K else tl.load(at, mask=k[:, None] < K, other=0.0)


@triton.jit
def _part(
    x,
    weight,
    scales,
    zeros,
    channels,
    tokens,
    part,
    M,
    N,
    K,
    steps,
    stride_x,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The sum over one part of K, [BLOCK_N, BLOCK_M]; channels and tokens past the end repeat the first ones."""
    first, last = part * steps // PARTS, (part + 1) * steps // PARTS
    HALF: tl.constexpr = STEP // 2
    BYTES: tl.constexpr = STEP * BITS // 8
    w = weight + (channels % N)[:, None].to(tl.int64) * (steps * BYTES) + tl.arange(0, BYTES)[None, :]
    w += first * BYTES
    ks = tl.arange(0, BYTES)  # as many elements at a time as bytes: all of a step, or either half of it
    row = x + (tokens % M)[None, :].to(tl.int64) * stride_x
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for step in range(first, last):
        k = step * STEP + ks
        wq = tl.load(w, eviction_policy="evict_first")
        x0 = _activations(row + k[:, None], k, K, EVEN_K)
        if BITS == 8:
            acc = tl.dot(wq.to(x0.dtype), x0, acc, input_precision="ieee")
        else:
            x1 = _activations(row + HALF + k[:, None], HALF + k, K, EVEN_K)
            at = (channels % N).to(tl.int64) * steps + step
            zero = tl.full((BLOCK_N,), 8, tl.int8)
            if zeros is not None:
                zero += tl.load(zeros + at)
            low = ((wq & 15).to(tl.int8) - zero[:, None]).to(x0.dtype)
            high = ((wq >> 4).to(tl.int8) - zero[:, None]).to(x0.dtype)
            group = tl.dot(low, x0, input_precision="ieee")
            group = tl.dot(high, x1, group, input_precision="ieee")
            acc += group * tl.load(scales + at)[:, None]
        w += BYTES
    return acc


@triton.jit
def _finish(total, scales, bias, residual, out, channels, tokens, M, N, stride_residual, BITS: tl.constexpr):
    """Scales the sums [BLOCK_N, BLOCK_M], adds what there is to add, and stores them as rows of tokens."""
    y = tl.trans(total)
    if BITS == 8:
        y = y * tl.load(scales + channels, mask=channels < N, other=0.0)[None, :]
    if bias is not None:
        y += tl.load(bias + channels, mask=channels < N, other=0.0)[None, :]
    inside = (tokens < M)[:, None] & (channels < N)[None, :]
    if residual is not None:
        at = tokens[:, None].to(tl.int64) * stride_residual + channels[None, :]
        y += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    at = tokens[:, None].to(tl.int64) * N + channels[None, :]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _kernel(
    x,
    weight,
    scales,
    zeros,
    bias,
    residual,
    out,
    sums,
    arrived,
    M,
    N,
    K,
    steps,
    stride_x,
    stride_residual,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """With `sums` one program per tile and part, the last of a tile to arrive adding them up; without, one per tile."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile_n, tile_m = tl.program_id(0) % tiles_n, tl.program_id(0) // tiles_n
    channels = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    if sums is None:
        for part in range(PARTS):
            total += _part(
                x,
                weight,
                scales,
                zeros,
                channels,
                tokens,
                part,
                M,
                N,
                K,
                steps,
                stride_x,
                BITS,
                PARTS,
                EVEN_K,
                STEP,
                BLOCK_N,
                BLOCK_M,
            )
        _finish(total, scales, bias, residual, out, channels, tokens, M, N, stride_residual, BITS)
    else:
        part = tl.program_id(1)
        acc = _part(
            x,
            weight,
            scales,
            zeros,
            channels,
            tokens,
            part,
            M,
            N,
            K,
            steps,
            stride_x,
            BITS,
            PARTS,
            EVEN_K,
            STEP,
            BLOCK_N,
            BLOCK_M,
        )
        own = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        sums += tile_n * PARTS * BLOCK_N * BLOCK_M
        tl.store(sums + part * BLOCK_N * BLOCK_M + own, acc)
        tl.debug_barrier()  # every thread's sums are on their way before this program counts as arrived
        if tl.atomic_add(arrived + tile_n, 1, sem="acq_rel") == PARTS - 1:
            for other in range(PARTS):
                total += tl.load(sums + other * BLOCK_N * BLOCK_M + own, cache_modifier=".cg")
            tl.store(arrived + tile_n, 0)
            _finish(total, scales, bias, residual, out, channels, tokens, M, N, stride_residual, BITS)


def variants(arch: str) -> Iterator[Variant]:
    tensors = {
        "x": "*bf16",
        "scales": "*fp32",
        "bias": "*fp32",
        "residual": "*bf16",
        "out": "*bf16",
    }
    sizes = dict.fromkeys(("M", "N", "K", "steps", "stride_x", "stride_residual"), "i32")
    kinds = [(8, STEP, False), *((4, group, False) for group in reversed(GROUPS)), (4, min(GROUPS), True)]
    for bits, step, has_zeros in kinds:
        cases = [(f"prefill_{bits}", _prefill(arch, bits), 2)]
        cases += [(f"decode_{bits}_{tokens}", config, 4) for tokens, config in DECODE.items()]
        for case, default, parts in cases:
            config = choose("weight_only_matmul", case, default, None)
            is_shared = case.startswith("decode")
            sometimes = {
                "sums": "*fp32" if is_shared else None,
                "arrived": "*i32" if is_shared else None,
                "zeros": "*i8" if has_zeros else None,
            }
            given = {name: kind for name, kind in sometimes.items() if kind is not None}
            missing = {name: None for name, kind in sometimes.items() if kind is None}
            for even in (True, False):
                tile = "x".join(str(config.tiles[f"BLOCK_{axis}"]) for axis in "NM")
                group = "" if step == STEP else f" group {step}"
                zeros = " zero points" if has_zeros else ""
                ragged = "" if even else " ragged K"
                yield Variant(
                    f"weight_only_matmul W{bits}A16{group}{zeros} {case.split('_')[0]} {tile}{ragged}",
                    _kernel,
                    {**tensors, "weight": "*i8" if bits == 8 else "*u8", **given, **sizes},
                    {**config.tiles, **missing, "BITS": bits, "PARTS": parts, "EVEN_K": even, "STEP": step},
                    config.num_warps,
                    config.num_stages,
                    mma="bf16",
                    mma_rows="BLOCK_N",
                    fp_fusion=False,
                    unaligned=frozenset({"M", "steps"}),
                    case=case,
                )
