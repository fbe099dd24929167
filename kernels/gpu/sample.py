"""The draw itself, on a GPU: temperature, top-k, top-p, min-p and noise of every row in one launch, without sorting.

The definition is `kernels/cpu/sample.py`. The lowest logit that may be drawn is found by bisection over the bits of floats,
which are ordered as the floats are; of logits equal to it, the first ones stay.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..draw import GOLDEN, MIX_1, MIX_2, Draw, noise_key
from ..transfer import upload
from .arguments import require
from .config import Config, choose
from .variant import Variant

DRAW = Config({"BLOCK": 4096}, num_warps=16, num_stages=1)


def sample(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """logits [S, V] float32 -> token ids [S] int64, and the score each won by [S], not finite where a row has no finite
    logit."""
    require("logits", logits, (len(draws), None), ("float32",))
    return draw_rows(logits, *parameters(draws, logits.device))


def parameters(draws: Sequence[Draw], device: torch.device) -> tuple[Tensor, Tensor]:
    """What the kernel reads of each row: [S, 3] float32 temperature, top_p, min_p, and [S, 2] int64 top_k, noise key."""
    floats = torch.tensor([(draw.temperature, draw.top_p, draw.min_p) for draw in draws], dtype=torch.float32)
    keys = [noise_key(draw.seed, draw.position) for draw in draws]
    whole = torch.tensor(
        [(draw.top_k, key - (1 << 64) if key >> 63 else key) for draw, key in zip(draws, keys, strict=True)],
        dtype=torch.int64,
    )
    return upload(floats.view(-1, 3), device), upload(whole.view(-1, 2), device)


def draw_rows(logits: Tensor, floats: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """The launch alone; as `sample`."""
    rows, vocab_size = logits.shape
    token_ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    best = torch.empty(rows, device=logits.device)
    if rows:
        config = choose("sample", "draw", DRAW, logits.device)
        block = min(config.tiles["BLOCK"], triton.next_power_of_2(vocab_size))
        _sample_kernel[(rows,)](
            logits,
            floats,
            whole,
            token_ids,
            best,
            vocab_size,
            logits.stride(0),
            GOLDEN_RATIO=GOLDEN,
            FIRST_MIX=MIX_1,
            SECOND_MIX=MIX_2,
            BLOCK=block,
            num_warps=max(1, min(config.num_warps, block // 256)),
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
    return token_ids, best


@triton.jit
def _ordered(values):
    """Integers in the order of the floats [BLOCK]; both zeros are one."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@triton.jit
def _scaled(logits, columns, vocab_size, temperature):
    values = tl.load(logits + columns, mask=columns < vocab_size, other=float("-inf"))
    return tl.div_rn(values, tl.zeros_like(values) + temperature)


@triton.jit
def _gumbel(ids, key, GOLDEN_RATIO: tl.constexpr, FIRST_MIX: tl.constexpr, SECOND_MIX: tl.constexpr):
    state = ids.to(tl.uint64) * GOLDEN_RATIO + key.to(tl.uint64, bitcast=True)
    state = (state ^ (state >> 30)) * FIRST_MIX
    state = (state ^ (state >> 27)) * SECOND_MIX
    state = state ^ (state >> 31)
    uniform = ((state >> 41).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    return -tl.log(-tl.log(uniform))


@triton.jit
def _sample_kernel(
    logits,
    floats,
    whole,
    token_ids,
    best_scores,
    vocab_size,
    stride_logits,
    GOLDEN_RATIO: tl.constexpr,
    FIRST_MIX: tl.constexpr,
    SECOND_MIX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * stride_logits
    asked = tl.load(floats + row * 3)
    top_p, min_p = tl.load(floats + row * 3 + 1), tl.load(floats + row * 3 + 2)
    top_k, key = tl.load(whole + row * 2), tl.load(whole + row * 2 + 1)
    is_random = asked > 0.0
    temperature = tl.where(is_random, asked, 1.0)
    columns = tl.arange(0, BLOCK)

    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    broken = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        values = _scaled(logits, start + columns, vocab_size, temperature)
        highest = tl.maximum(highest, values)
        broken |= (values != values).to(tl.int32)
    top = tl.max(highest)
    is_broken = tl.max(broken) > 0
    top_bits = tl.max(_ordered(highest)).to(tl.int64)

    # Of the logits whose bits equal `threshold` the first `ties` stay, of those above all; at first everything.
    threshold = tl.full((), -2147483648, tl.int64)
    ties = tl.full((), 2147483647, tl.int64)
    if is_random & (top_k > 0) & (top_k < vocab_size):
        low, high = threshold, top_bits + 1  # at least k logits reach `low`, fewer reach `high`
        while high - low > 1:
            middle = (low + high) >> 1
            counts = tl.zeros((BLOCK,), tl.int32)
            for start in range(0, vocab_size, BLOCK):
                there = start + columns < vocab_size
                bits = _ordered(_scaled(logits, start + columns, vocab_size, temperature))
                counts += (there & (bits >= middle)).to(tl.int32)
            enough = tl.sum(counts) >= top_k
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        counts = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, vocab_size, BLOCK):
            bits = _ordered(_scaled(logits, start + columns, vocab_size, temperature))
            counts += (bits > low).to(tl.int32)
        threshold = low
        ties = top_k - tl.sum(counts)
    if is_random & (top_p < 1.0):
        total = _mass_above(logits, vocab_size, temperature, top, threshold, BLOCK)
        total += _mass_at(logits, vocab_size, temperature, top, threshold, ties, BLOCK)
        wanted = total * top_p
        low, high = (
            threshold - 1,
            top_bits,
        )  # the mass above `high` is less than wanted, that above `low` is not
        while high - low > 1:
            middle = (low + high) >> 1
            less = _mass_above(logits, vocab_size, temperature, top, middle, BLOCK) < wanted
            high = tl.where(less, middle, high)
            low = tl.where(less, low, middle)
        above = _mass_above(logits, vocab_size, temperature, top, high, BLOCK)
        bits = tl.where(high >= 0, high, high ^ 0x7FFFFFFF).to(tl.int32)
        each = tl.exp(bits.to(tl.float32, bitcast=True) - top)
        needed = tl.maximum(tl.ceil((wanted - above) / each), 1.0).to(tl.int64)
        ties = tl.where(high == threshold, tl.minimum(ties, needed), needed)
        threshold = high
    if is_random & (min_p > 0.0):
        lowest = _ordered(top + tl.log(min_p)).to(tl.int64)
        ties = tl.where(lowest > threshold, 2147483647, ties)
        threshold = tl.maximum(lowest, threshold)

    best = tl.full((), float("-inf"), tl.float32)
    chosen = tl.full((), 0, tl.int32)
    seen = tl.full((), 0, tl.int64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + columns
        scores = _scaled(logits, ids, vocab_size, temperature)
        bits = _ordered(scores).to(tl.int64)
        equal = (bits == threshold) & (ids < vocab_size)
        rank = seen + tl.cumsum(equal.to(tl.int32), axis=0).to(tl.int64)
        seen += tl.sum(equal.to(tl.int32))
        stays = (ids < vocab_size) & ((bits > threshold) | (equal & (rank <= ties)))
        if is_random:
            scores += _gumbel(ids, key, GOLDEN_RATIO, FIRST_MIX, SECOND_MIX)
        scores = tl.where(stays, scores, float("-inf"))
        here, place = tl.max(scores, axis=0, return_indices=True)
        chosen = tl.where(here > best, start + place, chosen)
        best = tl.maximum(best, here)
    tl.store(token_ids + row, chosen.to(tl.int64))
    tl.store(best_scores + row, tl.where(is_broken, float("nan"), best))


@triton.jit
def _mass_above(logits, vocab_size, temperature, top, threshold, BLOCK: tl.constexpr):
    """The sum of exp(logit - top) over the logits whose bits are above `threshold`."""
    columns = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        values = _scaled(logits, start + columns, vocab_size, temperature)
        sums += tl.where(_ordered(values) > threshold, tl.exp(values - top), 0.0)
    return tl.sum(sums)


@triton.jit
def _mass_at(logits, vocab_size, temperature, top, threshold, most, BLOCK: tl.constexpr):
    """The same over those equal to it, `most` of them at most."""
    columns = tl.arange(0, BLOCK)
    counts = tl.zeros((BLOCK,), tl.int32)
    each = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        values = _scaled(logits, start + columns, vocab_size, temperature)
        equal = (_ordered(values) == threshold) & (start + columns < vocab_size)
        counts += equal.to(tl.int32)
        each = tl.where(equal, tl.exp(values - top), each)
    return tl.max(each) * tl.minimum(tl.sum(counts).to(tl.int64), most).to(tl.float32)


def variants(arch: str) -> Iterator[Variant]:
    config = choose("sample", "draw", DRAW, None)
    yield Variant(
        f"sample {config.tiles['BLOCK']}",
        _sample_kernel,
        {
            "logits": "*fp32",
            "floats": "*fp32",
            "whole": "*i64",
            "token_ids": "*i64",
            "best_scores": "*fp32",
            "vocab_size": "i32",
            "stride_logits": "i32",
        },
        {"GOLDEN_RATIO": GOLDEN, "FIRST_MIX": MIX_1, "SECOND_MIX": MIX_2, **config.tiles},
        config.num_warps,
        config.num_stages,
        fp_fusion=False,
        unaligned=frozenset({"vocab_size", "stride_logits"}),
        wide_loads=False,  # rows of a vocabulary of any size begin anywhere
        case="draw",
    )
