"""Causal attention of a step's rows over paged KV: decodes and prefill chunks, INT8 or float pages, in one call.

The heads of a GQA group are rows of one tile, so that a page is read once for all of them. A decode splits its keys at
fixed absolute positions, one program each, and the parts are combined in order. A prefill tile visits its keys front to
back. Tiles and splits begin at absolute positions, so a row's bits depend neither on its batch-mates nor on where a prompt
was cut into chunks. (A row computed as a decode and the same row within a chunk may differ in the last bits: the parts of
a decode are combined once more, and the matrix instructions of small and large tiles sum in their own order.)

INT8 pages are multiplied as they are: the scale of a key goes to its scores, that of a value to its probabilities.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..span import PAGE_SIZE
from .arguments import FLOATS, require, require_positive
from .config import Config, arch_of, choose, fitting
from .paged_batch import PagedBatch
from .tunable import HEAD_SIZES, by_head, head_size
from .variant import Variant

LOG2E = 1.4426950408889634
# Keys of one program of a decode: few enough to occupy a GPU with one long sequence, many enough that combining is cheap.
SPLIT = 512
# The smallest tile that matrix instructions take.
LEAST_ROWS = 16

# By chip, then by width of a head and whether the pages are INT8. What does not spill, by the ahead-of-time check.
PREFILL = {
    "sm_90": {
        (64, False): Config({"BLOCK_M": 128, "BLOCK_N": 128}, num_warps=8, num_stages=2),
        (64, True): Config({"BLOCK_M": 128, "BLOCK_N": 128}, num_warps=8, num_stages=2),
        (128, False): Config({"BLOCK_M": 128, "BLOCK_N": 128}, num_warps=8, num_stages=2),
        (128, True): Config({"BLOCK_M": 128, "BLOCK_N": 64}, num_warps=8, num_stages=3),
        (256, False): Config({"BLOCK_M": 128, "BLOCK_N": 32}, num_warps=8, num_stages=2),
        (256, True): Config({"BLOCK_M": 64, "BLOCK_N": 32}, num_warps=8, num_stages=2),
    },
    "sm_80": {
        (64, False): Config({"BLOCK_M": 128, "BLOCK_N": 64}, num_warps=8, num_stages=3),
        (64, True): Config({"BLOCK_M": 128, "BLOCK_N": 64}, num_warps=8, num_stages=3),
        (128, False): Config({"BLOCK_M": 128, "BLOCK_N": 64}, num_warps=8, num_stages=2),
        (128, True): Config({"BLOCK_M": 64, "BLOCK_N": 64}, num_warps=8, num_stages=2),
        (256, False): Config({"BLOCK_M": 64, "BLOCK_N": 32}, num_warps=8, num_stages=2),
        (256, True): Config({"BLOCK_M": 32, "BLOCK_N": 32}, num_warps=4, num_stages=2),
    },
}
DECODE = {
    (64, False): Config({"BLOCK_N": 64}, num_warps=4, num_stages=3),
    (64, True): Config({"BLOCK_N": 64}, num_warps=4, num_stages=3),
    (128, False): Config({"BLOCK_N": 64}, num_warps=4, num_stages=3),
    (128, True): Config({"BLOCK_N": 64}, num_warps=4, num_stages=3),
    (256, False): Config({"BLOCK_N": 32}, num_warps=4, num_stages=3),
    (256, True): Config({"BLOCK_N": 32}, num_warps=4, num_stages=3),
}
COMBINE = Config({}, num_warps=4, num_stages=1)


@dataclass(slots=True)
class AttentionResult:
    """`out` [T, Hq, D] in the query's dtype; `lse` [T, Hq] float32 if asked for: the logarithm of the softmax's sum."""

    out: Tensor
    lse: Tensor | None


def paged_attention(
    query: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    batch: PagedBatch,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    with_lse: bool = False,
    leave_sparse: bool = False,
    out: Tensor | None = None,
) -> AttentionResult:
    """Attention of every row over its own sequence's keys, which must be stored already.

    Args:
        query: [T, Hq, D]; head h reads KV head h // (Hq / Hkv).
        pages, scales: as `store_kv` writes them.
        scaling: multiplies q @ k; positive.
        sliding_window: a position sees itself and the sliding_window - 1 before it.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: [Hq] logits that take part in the softmax and then are dropped.
        leave_sparse: the rows that `sparse_attention` and `sparse_prompt` will write are left as they are; otherwise a batch
            with sparse prompts is refused.
        out: [T, Hq, D] contiguous, where the result goes; new memory without it.

    Raises ValueError naming an argument that does not fit.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = pages.shape[1]
    require("query", query, (None, None, None), FLOATS)
    require_positive("scaling", scaling)
    require("pages", pages, (None, num_kv_heads, 2, PAGE_SIZE, head_dim), ("int8", *FLOATS), query)
    if num_heads % num_kv_heads:
        raise ValueError(f"query has {num_heads} heads, which {num_kv_heads} KV heads do not divide.")
    if (scales is not None) != (pages.dtype is torch.int8):
        raise ValueError(f"scales are for int8 pages, and only for them; pages are {pages.dtype}.")
    if pages.dtype is not torch.int8 and pages.dtype is not query.dtype:
        raise ValueError(f"pages are {pages.dtype}; they must be int8 or {query.dtype} like the query.")
    if batch.prompt_blocks is not None and not leave_sparse:
        raise ValueError(
            "batch has sparse prompts, whose rows would stay unwritten; leave_sparse, or take them densely()."
        )
    if sinks is not None:
        require("sinks", sinks, (num_heads,), FLOATS, query)
    if out is None:
        out = torch.empty(num_tokens, num_heads, head_dim, dtype=query.dtype, device=query.device)
    else:
        require(
            "out", out, (num_tokens, num_heads, head_dim), (str(query.dtype).removeprefix("torch."),), query
        )
    lse = torch.empty(num_tokens, num_heads, device=query.device) if with_lse else None
    common = (
        query,
        pages,
        scales,
        sinks,
        out,
        lse,
        batch.block_tables,
        batch.cu_seqlens_q,
        batch.context_lens,
    )
    strides = (query.stride(0), query.stride(1), batch.block_tables.stride(0), num_kv_heads, head_dim)
    numbers = (scaling * LOG2E, sliding_window or 0, 0.0 if softcap is None else softcap / scaling)
    shape = {
        "GROUP": num_heads // num_kv_heads,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "PAGE": PAGE_SIZE,
        "SOFTCAP": softcap is not None,
        "WINDOWED": sliding_window is not None,
        "EVEN_D": head_dim == max(16, triton.next_power_of_2(head_dim)),
    }
    if batch.num_decodes:
        lens = batch.dense_lens if leave_sparse and batch.dense_lens is not None else batch.context_lens
        _decode((*common[:-1], lens), strides, numbers, shape, batch, query)
    if batch.num_prefills:
        _prefill(common, strides, numbers, shape, batch, query)
    return AttentionResult(out, lse)


def _decode(common, strides, numbers, shape, batch: PagedBatch, query: Tensor) -> None:
    _, num_heads, head_dim = query.shape
    splits = triton.cdiv(batch.max_context_len, SPLIT)
    workspace: tuple[Tensor, ...] | tuple[None, None, None] = (None, None, None)
    if splits > 1:
        workspace = new_parts(batch.num_decodes, num_heads, splits, head_dim, query.device)
    config = fitting(
        decode_config(shape["BLOCK_D"], common[2] is not None, query.device), query.dtype, query.device
    )
    num_kv_heads = strides[3]
    _decode_kernel[(batch.num_decodes, num_kv_heads, splits)](
        *common,
        *workspace,
        *strides,
        *numbers,
        **shape,
        BLOCK_M=max(LEAST_ROWS, triton.next_power_of_2(shape["GROUP"])),
        SPLIT_KEYS=SPLIT,
        ONLY=splits == 1,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if splits > 1:
        sinks, out, lse, *_, lengths = common[3:]
        combine(workspace, sinks, out, lse, lengths, heads_per_length=num_heads, window=numbers[1])


def new_parts(
    rows: int, num_heads: int, splits: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what the splits of decodes leave: their sums, highest scores and totals."""
    parts = torch.empty(rows, num_heads, splits, head_dim, device=device)
    highest, total = torch.empty(2, rows, num_heads, splits, device=device)
    return parts, highest, total


def combine(
    workspace: tuple[Tensor | None, ...],
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor | None,
    lengths: Tensor,
    *,
    heads_per_length: int,
    window: int = 0,
) -> None:
    """Adds up the splits of every row and head in order, as `new_parts` holds them, to the rows of out [T, Hq, D].

    `lengths` holds the keys of each `heads_per_length` heads; where that is none, `out` stays as it is.
    """
    assert workspace[0] is not None
    rows, num_heads, splits, head_dim = workspace[0].shape
    config = choose("paged_attention", "combine", COMBINE, out.device)
    _combine_kernel[(rows, num_heads)](
        *workspace,
        sinks,
        out,
        lse,
        lengths,
        splits,
        head_dim,
        window,
        heads_per_length,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        SPLIT_KEYS=SPLIT,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _prefill(common, strides, numbers, shape, batch: PagedBatch, query: Tensor) -> None:
    config = prefill_config(shape["BLOCK_D"], common[2] is not None, arch_of(query.device), query.device)
    config = fitting(config, query.dtype, query.device)
    tokens = tokens_per_tile(config, shape["GROUP"])
    tiles = triton.cdiv(batch.max_query_len, tokens)
    rows = max(config.tiles["BLOCK_M"], triton.next_power_of_2(shape["GROUP"]))
    _prefill_kernel[(tiles, strides[3], batch.num_prefills)](
        *common,
        *strides,
        *numbers,
        batch.num_decodes,
        **shape,
        TOKENS=tokens,
        **{**config.tiles, "BLOCK_M": rows},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def tokens_per_tile(config: Config, group: int) -> int:
    """Query positions of one tile, all heads of a group beside each other."""
    return max(1, config.tiles["BLOCK_M"] // group)


def decode_config(block_d: int, int8: bool, device: torch.device | None) -> Config:
    """How a decode over pages of this kind is launched."""
    case = by_head("decode", block_d, int8)
    return choose("paged_attention", case, default_decode(block_d, int8), device)


def default_decode(block_d: int, int8: bool) -> Config:
    return DECODE[head_size(block_d), int8]


def prefill_config(block_d: int, int8: bool, arch: str, device: torch.device | None) -> Config:
    """How a prefill over pages of this kind is launched on `arch`."""
    case = by_head("prefill", block_d, int8)
    return choose("paged_attention", case, default_prefill(block_d, int8, arch), device)


def default_prefill(block_d: int, int8: bool, arch: str) -> Config:
    return PREFILL["sm_90" if arch == "sm_90" else "sm_80"][head_size(block_d), int8]


@triton.jit
def step(
    q,
    acc,
    highest,
    total,
    positions,
    row_positions,
    limit,
    table,
    pages,
    scales,
    kv_head,
    num_kv_heads,
    head_dim,
    scale,
    window,
    cap,
    MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    PAGE: tl.constexpr,
):
    """One tile of keys at `positions`: returns the running acc, highest (in units of log2) and total. `scale` is positive.

    Not MASKED: every row sees all of the tile. Otherwise positions from `limit` on are not stored, and what is not stored
    may be anything, even NaN: it is never read.
    """
    dims = tl.arange(0, BLOCK_D)
    stored = positions < limit
    if MASKED:
        page = tl.load(table + positions // PAGE, mask=stored, other=0).to(tl.int64)
    else:
        page = tl.load(table + positions // PAGE).to(tl.int64)
    side = (page * num_kv_heads + kv_head) * 2
    places = positions % PAGE
    at = (side * PAGE + places) * head_dim
    keys, values = pages + at[None, :] + dims[:, None], pages + at[:, None] + PAGE * head_dim + dims[None, :]
    if MASKED or not EVEN_D:
        k = tl.load(keys, mask=stored[None, :] & (dims < head_dim)[:, None], other=0.0)
    else:
        k = tl.load(keys)
    # float32 multiplies as float32, not as tf32; other types ignore the word.
    scores = tl.dot(q, k.to(q.dtype), input_precision="ieee")
    if scales is not None:
        if MASKED:
            scores *= tl.load(scales + side * PAGE + places, mask=stored, other=0.0)[None, :]
        else:
            scores *= tl.load(scales + side * PAGE + places)[None, :]
    if SOFTCAP:
        # cap * tanh(scores / cap), in units of the raw product
        scores = cap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * 1.4426950408889634 / cap)) + 1.0))
    if MASKED:
        seen = (positions[None, :] <= row_positions[:, None]) & stored[None, :]
        if WINDOWED:
            seen &= positions[None, :] > row_positions[:, None] - window
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, axis=1) * scale)
    # A row that has seen nothing yet stays at -inf; minus itself that would be NaN.
    anchor = tl.where(higher == float("-inf"), 0.0, higher)
    # One rounding, written out: a compiler may fuse product and difference in the loop without masks and not in the other,
    # and a row must not depend on which of them its keys are in.
    p = tl.exp2(tl.fma(scores, scale, -anchor[:, None]))
    faded = tl.exp2(highest - anchor)
    total = total * faded + tl.sum(p, axis=1)
    if MASKED or not EVEN_D:
        v = tl.load(values, mask=stored[:, None] & (dims < head_dim)[None, :], other=0.0)
    else:
        v = tl.load(values)
    if scales is not None:
        if MASKED:
            p *= tl.load(scales + (side + 1) * PAGE + places, mask=stored, other=0.0)[None, :]
        else:
            p *= tl.load(scales + (side + 1) * PAGE + places)[None, :]
    acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * faded[:, None], input_precision="ieee")
    return acc, higher, total


@triton.jit
def finish(acc, highest, total, sink):
    """Normalize [R, D], with the sinks' logits [R] (in units of log2) in the softmax; returns it and the log2 of the sum."""
    anchor = tl.maximum(highest, sink)
    anchor = tl.where(anchor == float("-inf"), 0.0, anchor)
    faded = tl.exp2(highest - anchor)
    total = total * faded + tl.exp2(sink - anchor)
    safe = tl.where(total == 0.0, 1.0, total)
    return acc * (faded / safe)[:, None], anchor + tl.log2(safe)


@triton.jit
def load_sinks(sinks, heads, inside):
    logits = tl.full(heads.shape, float("-inf"), tl.float32)
    if sinks is not None:
        logits = tl.load(sinks + heads, mask=inside, other=float("-inf")).to(tl.float32) * 1.4426950408889634
    return logits


@triton.jit
def store_result(out, lse, value, log2_sum, rows, heads, inside, num_heads, head_dim, BLOCK_D: tl.constexpr):
    dims = tl.arange(0, BLOCK_D)
    at = rows.to(tl.int64) * num_heads + heads
    there = inside[:, None] & (dims < head_dim)[None, :]
    tl.store(out + at[:, None] * head_dim + dims[None, :], value.to(out.dtype.element_ty), mask=there)
    if lse is not None:
        tl.store(lse + at, log2_sum * 0.6931471805599453, mask=inside)


@triton.jit
def _decode_kernel(
    query,
    pages,
    scales,
    sinks,
    out,
    lse,
    tables,
    starts,
    context_lens,
    parts,
    highests,
    totals,
    stride_row,
    stride_head,
    stride_table,
    num_kv_heads,
    head_dim,
    scale,
    window,
    cap,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOWED: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    ONLY: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per sequence, KV head and split of SPLIT_KEYS positions."""
    seq, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(context_lens + seq)
    first = split * SPLIT_KEYS
    last = tl.minimum(first + SPLIT_KEYS, length)
    if WINDOWED:
        first = tl.maximum(first, tl.maximum(length - window, 0) // BLOCK_N * BLOCK_N)
    members = tl.arange(0, BLOCK_M)
    inside = members < GROUP
    heads = kv_head * GROUP + members
    num_heads = num_kv_heads * GROUP
    # Splits past the end, or before the window, are nobody's: combining skips them.
    if first < last:
        dims = tl.arange(0, BLOCK_D)
        q = tl.load(
            query + seq.to(tl.int64) * stride_row + heads[:, None] * stride_head + dims[None, :],
            mask=inside[:, None] & (dims < head_dim)[None, :],
            other=0.0,
        )
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        own = tl.zeros((BLOCK_M,), tl.int32) + (length - 1)
        table = tables + seq.to(tl.int64) * stride_table
        # Tiles that every row sees whole need no masks; under a window they are few.
        whole = first if WINDOWED else tl.maximum(last // BLOCK_N * BLOCK_N, first)
        for start in range(first, whole, BLOCK_N):
            acc, highest, total = step(
                q,
                acc,
                highest,
                total,
                start + tl.arange(0, BLOCK_N),
                own,
                last,
                table,
                pages,
                scales,
                kv_head,
                num_kv_heads,
                head_dim,
                scale,
                window,
                cap,
                False,
                WINDOWED,
                SOFTCAP,
                BLOCK_D,
                EVEN_D,
                PAGE,
            )
        for start in range(whole, last, BLOCK_N):
            acc, highest, total = step(
                q,
                acc,
                highest,
                total,
                start + tl.arange(0, BLOCK_N),
                own,
                last,
                table,
                pages,
                scales,
                kv_head,
                num_kv_heads,
                head_dim,
                scale,
                window,
                cap,
                True,
                WINDOWED,
                SOFTCAP,
                BLOCK_D,
                EVEN_D,
                PAGE,
            )
        if ONLY:
            sink = load_sinks(sinks, heads, inside)
            value, log2_sum = finish(acc, highest, total, sink)
            rows = tl.zeros((BLOCK_M,), tl.int32) + seq
            store_result(out, lse, value, log2_sum, rows, heads, inside, num_heads, head_dim, BLOCK_D)
        else:
            at = (seq * num_heads + heads).to(tl.int64) * tl.num_programs(2) + split
            there = inside[:, None] & (dims < head_dim)[None, :]
            tl.store(parts + at[:, None] * head_dim + dims[None, :], acc, mask=there)
            tl.store(highests + at, highest, mask=inside)
            tl.store(totals + at, total, mask=inside)


@triton.jit
def _combine_kernel(
    parts,
    highests,
    totals,
    sinks,
    out,
    lse,
    lengths,
    splits,
    head_dim,
    window,
    heads_per_length,
    BLOCK_D: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """One program per sequence and head: its splits in order."""
    seq, head = tl.program_id(0), tl.program_id(1)
    num_heads = tl.num_programs(1)
    length = tl.load(lengths + (seq * num_heads + head) // heads_per_length)
    first = 0
    if window > 0:
        first = tl.maximum(length - window, 0) // SPLIT_KEYS
    dims = tl.arange(0, BLOCK_D)
    base = (seq * num_heads + head).to(tl.int64) * splits
    acc = tl.zeros((1, BLOCK_D), tl.float32)
    highest = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    for split in range(first, tl.cdiv(length, SPLIT_KEYS)):
        part = tl.load(parts + (base + split) * head_dim + dims, mask=dims < head_dim, other=0.0)
        its_highest, its_total = tl.load(highests + base + split), tl.load(totals + base + split)
        higher = tl.maximum(highest, its_highest)
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        faded, its_weight = tl.exp2(highest - anchor), tl.exp2(its_highest - anchor)
        acc = acc * faded[:, None] + part[None, :] * its_weight[:, None]
        total = total * faded + its_total * its_weight
        highest = higher
    one = tl.arange(0, 1)
    sink = load_sinks(sinks, one + head, one == 0)
    value, log2_sum = finish(acc, highest, total, sink)
    mine = (one == 0) & (length > 0)
    store_result(out, lse, value, log2_sum, one + seq, one + head, mine, num_heads, head_dim, BLOCK_D)


@triton.jit
def _prefill_kernel(
    query,
    pages,
    scales,
    sinks,
    out,
    lse,
    tables,
    starts,
    context_lens,
    stride_row,
    stride_head,
    stride_table,
    num_kv_heads,
    head_dim,
    scale,
    window,
    cap,
    num_decodes,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOWED: tl.constexpr,
    EVEN_D: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per sequence, KV head and tile of TOKENS positions, the last (longest) tiles first."""
    seq, kv_head = tl.program_id(2) + num_decodes, tl.program_id(1)
    start_row = tl.load(starts + seq)
    num_rows = tl.load(starts + seq + 1) - start_row
    tile = tl.cdiv(num_rows, TOKENS) - 1 - tl.program_id(0)
    if tile >= 0:
        first_position = tl.load(context_lens + seq) - num_rows
        members = tl.arange(0, BLOCK_M)
        tokens = tile * TOKENS + members // GROUP
        inside = (tokens < num_rows) & (members < TOKENS * GROUP)
        heads = kv_head * GROUP + members % GROUP
        row_positions = first_position + tokens
        dims = tl.arange(0, BLOCK_D)
        rows = start_row + tokens
        q = tl.load(
            query + rows[:, None].to(tl.int64) * stride_row + heads[:, None] * stride_head + dims[None, :],
            mask=inside[:, None] & (dims < head_dim)[None, :],
            other=0.0,
        )
        last = first_position + tl.minimum((tile + 1) * TOKENS, num_rows)
        first = 0
        if WINDOWED:
            first = tl.maximum(first_position + tile * TOKENS - window + 1, 0) // BLOCK_N * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        table = tables + seq.to(tl.int64) * stride_table
        # Tiles that every row sees whole need no masks; under a window they are few.
        whole = (
            first
            if WINDOWED
            else tl.maximum((first_position + tile * TOKENS + 1) // BLOCK_N * BLOCK_N, first)
        )
        for start in range(first, whole, BLOCK_N):
            acc, highest, total = step(
                q,
                acc,
                highest,
                total,
                start + tl.arange(0, BLOCK_N),
                row_positions,
                last,
                table,
                pages,
                scales,
                kv_head,
                num_kv_heads,
                head_dim,
                scale,
                window,
                cap,
                False,
                WINDOWED,
                SOFTCAP,
                BLOCK_D,
                EVEN_D,
                PAGE,
            )
        for start in range(whole, last, BLOCK_N):
            acc, highest, total = step(
                q,
                acc,
                highest,
                total,
                start + tl.arange(0, BLOCK_N),
                row_positions,
                last,
                table,
                pages,
                scales,
                kv_head,
                num_kv_heads,
                head_dim,
                scale,
                window,
                cap,
                True,
                WINDOWED,
                SOFTCAP,
                BLOCK_D,
                EVEN_D,
                PAGE,
            )
        sink = load_sinks(sinks, heads, inside)
        value, log2_sum = finish(acc, highest, total, sink)
        num_heads = num_kv_heads * GROUP
        store_result(out, lse, value, log2_sum, rows, heads, inside, num_heads, head_dim, BLOCK_D)


def variants(arch: str) -> Iterator[Variant]:
    pointers = {"query": "*bf16", "out": "*bf16", "tables": "*i32", "starts": "*i32", "context_lens": "*i32"}
    sizes = dict.fromkeys(
        ("stride_row", "stride_head", "stride_table", "num_kv_heads", "head_dim", "window"), "i32"
    )
    numbers = {"scale": "fp32", "cap": "fp32"}
    unaligned = frozenset(
        {"num_kv_heads", "window", "stride_table", "num_decodes", "splits", "heads_per_length"}
    )
    for block_d in HEAD_SIZES:
        for kind in ("bf16", "i8"):
            pools = {"pages": f"*{kind}", **({"scales": "*fp32"} if kind == "i8" else {})}
            absent = {"sinks": None, "lse": None, **({} if kind == "i8" else {"scales": None})}
            shape = {"GROUP": 4, "BLOCK_D": block_d, "PAGE": PAGE_SIZE, "SOFTCAP": False, "WINDOWED": False}
            shape["EVEN_D"] = True
            config = decode_config(block_d, kind == "i8", None)
            workspace = {"parts": "*fp32", "highests": "*fp32", "totals": "*fp32"}
            yield Variant(
                f"paged_attention decode {kind} D={block_d} 16x{config.tiles['BLOCK_N']}",
                _decode_kernel,
                {**pointers, **pools, **workspace, **sizes, **numbers},
                {
                    **absent,
                    **shape,
                    **config.tiles,
                    "BLOCK_M": LEAST_ROWS,
                    "SPLIT_KEYS": SPLIT,
                    "ONLY": False,
                },
                config.num_warps,
                config.num_stages,
                mma="bf16",
                unaligned=unaligned,
                case=by_head("decode", block_d, kind == "i8"),
            )
            config = prefill_config(block_d, kind == "i8", arch, None)
            tile = f"{config.tiles['BLOCK_M']}x{config.tiles['BLOCK_N']}"
            yield Variant(
                f"paged_attention prefill {kind} D={block_d} {tile}",
                _prefill_kernel,
                {**pointers, **pools, **sizes, **numbers, "num_decodes": "i32"},
                {**absent, **shape, **config.tiles, "TOKENS": tokens_per_tile(config, 4)},
                config.num_warps,
                config.num_stages,
                mma="bf16",
                unaligned=unaligned,
                case=by_head("prefill", block_d, kind == "i8"),
            )
    config = choose("paged_attention", "combine", COMBINE, None)
    yield Variant(
        "paged_attention combine D=128",
        _combine_kernel,
        {
            "parts": "*fp32",
            "highests": "*fp32",
            "totals": "*fp32",
            "out": "*bf16",
            "lengths": "*i32",
            "splits": "i32",
            "head_dim": "i32",
            "window": "i32",
            "heads_per_length": "i32",
        },
        {"sinks": None, "lse": None, "BLOCK_D": 128, "SPLIT_KEYS": SPLIT},
        config.num_warps,
        config.num_stages,
        unaligned=unaligned,
        wide_loads=False,
        case="combine",
    )
