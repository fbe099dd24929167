"""Decodes over long contexts that attend to the keys which hold a given share of the attention, and read no other values.

Three launches in place of one. The first gives the logarithm of the attention mass of every granule of 16 tokens and
head: from the keys as stored (all keys are read, no value), or from the summaries that `store_kv` keeps, an eighth of the
bytes, by either formula. The second finds, for each KV head, the highest threshold at which the granules whose share of any
head of the group reaches it hold `mass` for every head of the group, and lists them; the first granule and the last 128
tokens are always in. The third is paged attention over the list. (The definition is in
`kernels/reference/sparse_attention.py`.)

Grids depend on the longest context alone, and a row on nothing but its own sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..span import PAGE_SIZE
from .arguments import FLOATS, require, require_positive
from .config import Config, choose, fitting
from .paged_attention import (
    LEAST_ROWS,
    LOG2E,
    SPLIT,
    combine,
    default_decode,
    new_parts,
    step,
)
from .paged_batch import GRANULE, GRANULES_PER_PAGE, PagedBatch
from .tunable import HEAD_SIZES, by_head
from .variant import Variant

RECENT_TOKENS = 128
KEYS, MIN_MAX, MEAN_STD = -1, 0, 1
"""What the mass is estimated from; the last two as `store_kv` writes summaries."""
# BLOCK_G: granules that a program scores, or chooses from, at a time; GRANULES: that it scores.
SCORE = Config({"BLOCK_G": 16, "GRANULES": 32}, num_warps=4, num_stages=2)
SELECT = Config({"BLOCK_G": 1024}, num_warps=8, num_stages=1)
SUMS = 4
"""Of the telemetry, [4] int64: heads decided, tokens kept, tokens of context, and millionths of the least mass kept."""


@dataclass(slots=True)
class Selection:
    """`granules` [S, Hkv, N] int32, ascending, of which the first `lengths` / 16 count; lengths [S, Hkv] int32 tokens.

    `log_masses` [S, Hq, N] float32: log2 of the mass that each granule was estimated to have.
    """

    granules: Tensor
    lengths: Tensor
    log_masses: Tensor


def sparse_attention(
    query: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    summaries: Tensor | None,
    batch: PagedBatch,
    out: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    telemetry: Tensor | None = None,
    formula: int = KEYS,
    bounds: Tensor | None = None,
) -> Selection:
    """Writes the rows of `out` [T, Hq, D] that `batch` decodes sparsely; the rest of it stays.

    Args:
        query, pages, scales: as `paged_attention` takes them.
        summaries: as `store_kv` writes them by `formula`; None for KEYS.
        telemetry: [SUMS] int64 to add to.
        bounds: [2] float64 to add to: rows and KV heads, and the most that each can have dropped. Costs some launches; for
            MIN_MAX without a softcap, whose masses bound the true ones from above (but for the rounding of summaries).

    Returns what was attended to. Raises ValueError naming an argument that does not fit.
    """
    selection = select_granules(
        query,
        pages,
        scales,
        summaries,
        batch,
        scaling=scaling,
        softcap=softcap,
        telemetry=telemetry,
        formula=formula,
    )
    require("out", out, tuple(query.shape), FLOATS, query)
    lse = None if bounds is None else torch.empty(query.shape[:2], device=query.device)
    _attend(query, pages, scales, batch, out, selection, scaling, softcap, lse)
    if bounds is not None:
        assert lse is not None
        if formula != MIN_MAX or softcap is not None:
            raise ValueError("bounds come from min/max summaries and scores without a softcap.")
        _add_bounds(selection, batch, lse[: batch.num_decodes], bounds)
    return selection


def _add_bounds(selection: Selection, batch: PagedBatch, lse: Tensor, bounds: Tensor) -> None:
    """B / (1 + B), B = sum over dropped granules of n exp(U - LSE of the kept), U from (min, max); the worst head each.

    (`dropped_mass_bound` in `kernels/reference/sparse_attention.py`.) `lse` [S, Hq], in natural logarithms.
    """
    assert batch.sparse_lens is not None
    rows, num_kv_heads, most = selection.granules.shape
    numbers = torch.arange(most, device=lse.device)
    listed = numbers < (selection.lengths // GRANULE)[:, :, None]
    # What is not listed goes to a column of its own.
    places = torch.where(listed, selection.granules, most).long()
    kept = torch.zeros(rows, num_kv_heads, most + 1, dtype=torch.bool, device=lse.device)
    kept.scatter_(2, places, True)
    dropped = ~kept[:, :, :most] & (numbers * GRANULE < batch.sparse_lens[:, None, None])
    log_masses = selection.log_masses.view(rows, num_kv_heads, -1, most) / LOG2E
    most_dropped = log_masses.masked_fill(~dropped[:, :, None], float("-inf")).logsumexp(dim=-1)
    worst = (most_dropped - lse.view(rows, num_kv_heads, -1)).sigmoid().amax(dim=-1)
    decided = (batch.sparse_lens > 0)[:, None].expand_as(worst)
    bounds += torch.stack([decided.sum(), worst.double().masked_fill(~decided, 0.0).sum()])


def select_granules(
    query: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    summaries: Tensor | None,
    batch: PagedBatch,
    *,
    scaling: float,
    softcap: float | None,
    telemetry: Tensor | None,
    formula: int,
) -> Selection:
    """The first two launches of `sparse_attention`."""
    _, num_heads, head_dim = query.shape
    num_kv_heads, rows = pages.shape[1], batch.num_decodes
    assert batch.sparse_lens is not None and batch.masses is not None
    require("query", query, (None, None, None), FLOATS)
    require_positive("scaling", scaling)
    require("pages", pages, (None, num_kv_heads, 2, PAGE_SIZE, head_dim), ("int8", *FLOATS), query)
    if (summaries is None) != (formula == KEYS):
        raise ValueError("summaries are for estimating from them, and only for that.")
    if summaries is not None:
        shape = (pages.shape[0], num_kv_heads, GRANULES_PER_PAGE, 2, head_dim)
        require("summaries", summaries, shape, FLOATS, query)
    most = triton.cdiv(batch.max_context_len, GRANULE)
    masses = torch.empty(rows, num_heads, most, device=query.device)
    group = num_heads // num_kv_heads
    block_d = max(16, triton.next_power_of_2(head_dim))
    config = fitting(
        _score_config(formula, block_d, scales is not None, query.device), query.dtype, query.device
    )
    _score_kernel[(rows, num_kv_heads, triton.cdiv(most, config.tiles["GRANULES"]))](
        query,
        pages,
        scales,
        summaries,
        masses,
        batch.block_tables,
        batch.sparse_lens,
        query.stride(0),
        query.stride(1),
        batch.block_tables.stride(0),
        num_kv_heads,
        head_dim,
        most,
        scaling,
        0.0 if softcap is None else softcap,
        GROUP=group,
        BLOCK_M=max(LEAST_ROWS, triton.next_power_of_2(group)),
        BLOCK_D=block_d,
        PAGE=PAGE_SIZE,
        TOKENS=GRANULE,
        FORMULA=formula,
        SOFTCAP=softcap is not None,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    granules = torch.empty(rows, num_kv_heads, most, dtype=torch.int32, device=query.device)
    lengths = torch.empty(rows, num_kv_heads, dtype=torch.int32, device=query.device)
    config = choose("sparse_attention", "select", SELECT, query.device)
    _select_kernel[(rows, num_kv_heads)](
        masses,
        batch.sparse_lens,
        batch.masses,
        granules,
        lengths,
        telemetry,
        num_kv_heads,
        most,
        GROUP=group,
        BLOCK_H=triton.next_power_of_2(group),
        TOKENS=GRANULE,
        RECENT=RECENT_TOKENS,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return Selection(granules, lengths, masses)


def _score_config(formula: int, block_d: int, int8: bool, device: torch.device | None) -> Config:
    return choose("sparse_attention", _score_case(formula, block_d, int8), SCORE, device)


def _score_case(formula: int, block_d: int, int8: bool) -> str:
    name = {KEYS: "score_keys", MIN_MAX: "score_min_max", MEAN_STD: "score_mean_std"}[formula]
    return by_head(name, block_d, int8 and formula == KEYS)  # summaries are never INT8


def _attend_config(block_d: int, int8: bool, device: torch.device | None) -> Config:
    case = by_head("attend", block_d, int8)
    return choose("sparse_attention", case, default_decode(block_d, int8), device)


def _attend(
    query: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    batch: PagedBatch,
    out: Tensor,
    selection: Selection,
    scaling: float,
    softcap: float | None,
    lse: Tensor | None,
) -> None:
    _, num_heads, head_dim = query.shape
    num_kv_heads, rows = pages.shape[1], batch.num_decodes
    group = num_heads // num_kv_heads
    splits = triton.cdiv(batch.max_context_len, SPLIT)
    workspace = new_parts(rows, num_heads, splits, head_dim, query.device)
    block_d = max(16, triton.next_power_of_2(head_dim))
    config = fitting(_attend_config(block_d, scales is not None, query.device), query.dtype, query.device)
    _attend_kernel[(rows, num_kv_heads, splits)](
        query,
        pages,
        scales,
        batch.block_tables,
        batch.sparse_lens,
        selection.granules,
        selection.lengths,
        *workspace,
        query.stride(0),
        query.stride(1),
        batch.block_tables.stride(0),
        num_kv_heads,
        head_dim,
        selection.granules.shape[2],
        scaling * LOG2E,
        0.0 if softcap is None else softcap / scaling,
        GROUP=group,
        BLOCK_M=max(LEAST_ROWS, triton.next_power_of_2(group)),
        BLOCK_D=block_d,
        PAGE=PAGE_SIZE,
        TOKENS=GRANULE,
        SOFTCAP=softcap is not None,
        EVEN_D=head_dim == block_d,
        SPLIT_KEYS=SPLIT,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    combine(workspace, None, out, lse, selection.lengths, heads_per_length=group)


@triton.jit
def _score_kernel(
    query,
    pages,
    scales,
    summaries,
    masses,
    tables,
    lens,
    stride_row,
    stride_head,
    stride_table,
    num_kv_heads,
    head_dim,
    most,
    scaling,
    cap,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    FORMULA: tl.constexpr,
    SOFTCAP: tl.constexpr,
    GRANULES: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """One program per sequence, KV head and GRANULES granules: log2 of the mass of each, for every head of the group."""
    seq, kv_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lens + seq)
    first, last = tl.program_id(2) * GRANULES, tl.cdiv(length, TOKENS)
    last = tl.minimum(first + GRANULES, last)
    if first < last:
        members, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        heads = kv_head * GROUP + members
        q = tl.load(
            query + seq.to(tl.int64) * stride_row + heads[:, None] * stride_head + dims[None, :],
            mask=(members < GROUP)[:, None] & (dims < head_dim)[None, :],
            other=0.0,
        )
        table = tables + seq.to(tl.int64) * stride_table
        for start in range(first, last, BLOCK_G):
            granules = start + tl.arange(0, BLOCK_G)
            there = granules < last
            if FORMULA == -1:
                positions = start * TOKENS + tl.arange(0, BLOCK_G * TOKENS)
                stored = positions < length
                page = tl.load(table + positions // PAGE, mask=stored, other=0).to(tl.int64)
                side = (page * num_kv_heads + kv_head) * 2
                places = positions % PAGE
                at = (side * PAGE + places) * head_dim
                k = tl.load(
                    pages + at[None, :] + dims[:, None],
                    mask=stored[None, :] & (dims < head_dim)[:, None],
                    other=0.0,
                )
                scores = tl.dot(q, k.to(q.dtype), input_precision="ieee")
                if scales is not None:
                    scores *= tl.load(scales + side * PAGE + places, mask=stored, other=0.0)[None, :]
                scores *= scaling
                if SOFTCAP:
                    scores = cap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * 1.4426950408889634 / cap)) + 1.0))
                scores = tl.where(stored[None, :], scores * 1.4426950408889634, float("-inf"))
                grouped = tl.reshape(scores, (BLOCK_M, BLOCK_G, TOKENS))
                highest = tl.max(grouped, axis=2)
                anchor = tl.where(highest == float("-inf"), 0.0, highest)
                log_mass = anchor + tl.log2(
                    tl.maximum(tl.sum(tl.exp2(grouped - anchor[:, :, None]), axis=2), 1e-30)
                )
            else:
                page = tl.load(table + granules * TOKENS // PAGE, mask=there, other=0).to(tl.int64)
                per_page: tl.constexpr = PAGE // TOKENS
                at = ((page * num_kv_heads + kv_head) * per_page + granules % per_page) * 2 * head_dim
                known = there[None, :] & (dims < head_dim)[:, None]
                one = tl.load(summaries + at[None, :] + dims[:, None], mask=known, other=0.0)
                two = tl.load(summaries + at[None, :] + head_dim + dims[:, None], mask=known, other=0.0)
                wide = q.to(tl.float32)
                if FORMULA == 0:
                    up, down = tl.maximum(wide, 0.0).to(q.dtype), tl.minimum(wide, 0.0).to(q.dtype)
                    scores = tl.dot(up, two.to(q.dtype), input_precision="ieee")
                    scores = tl.dot(down, one.to(q.dtype), scores, input_precision="ieee") * scaling
                else:
                    scores = tl.dot(q, one.to(q.dtype), input_precision="ieee") * scaling
                    spread = two.to(tl.float32)
                    # In bf16, as float16 would overflow; an estimate needs no more.
                    if q.dtype == tl.float32:
                        squares = tl.dot(wide * wide, spread * spread, input_precision="ieee")
                    else:
                        squares = tl.dot((wide * wide).to(tl.bfloat16), (spread * spread).to(tl.bfloat16))
                    scores += squares * (0.5 * scaling * scaling)
                count = tl.minimum(length - granules * TOKENS, TOKENS).to(tl.float32)
                log_mass = scores * 1.4426950408889634 + tl.log2(tl.maximum(count, 1.0))[None, :]
            to = (
                masses + (seq * num_kv_heads * GROUP + heads).to(tl.int64)[:, None] * most + granules[None, :]
            )
            tl.store(to, log_mass, mask=(members < GROUP)[:, None] & there[None, :])


@triton.jit
def _shares(own, granules, last, highest, total, BLOCK_H: tl.constexpr):
    """The granules' shares of each head's mass, zero past the end."""
    log_mass = tl.load(own + granules[None, :], mask=(granules < last)[None, :], other=float("-inf"))
    return tl.exp2(log_mass - highest[:, None]) / total[:, None]


@triton.jit
def _rank(shares, granules, last, first_recent):
    """The largest share of any head; above all where a granule is always kept."""
    always = (granules == 0) | (granules >= first_recent)
    return tl.where(granules < last, tl.where(always, 2.0, tl.max(shares, axis=0)), -1.0)


@triton.jit
def _select_kernel(
    masses,
    lens,
    wanted,
    granules_out,
    lengths_out,
    telemetry,
    num_kv_heads,
    most,
    GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_G: tl.constexpr,
    TOKENS: tl.constexpr,
    RECENT: tl.constexpr,
):
    """One program per sequence and KV head."""
    seq, kv_head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lens + seq)
    tl.store(lengths_out + seq * num_kv_heads + kv_head, 0)
    if length > 0:
        mass = tl.load(wanted + seq)
        last = tl.cdiv(length, TOKENS)
        first_recent = tl.maximum(length - RECENT, 0) // TOKENS
        # Rows past the group repeat its last head, which changes no maximum and no minimum.
        heads = kv_head * GROUP + tl.minimum(tl.arange(0, BLOCK_H), GROUP - 1)
        own = masses + (seq * num_kv_heads * GROUP + heads).to(tl.int64)[:, None] * most
        columns = tl.arange(0, BLOCK_G)
        # Sums are kept by column and added up behind each loop: reductions within would cost a barrier each.
        best = tl.full((BLOCK_H, BLOCK_G), float("-inf"), tl.float32)
        for start in range(0, last, BLOCK_G):
            granules = start + columns
            there = (granules < last)[None, :]
            best = tl.maximum(best, tl.load(own + granules[None, :], mask=there, other=float("-inf")))
        highest = tl.max(best, axis=1)
        sums = tl.zeros((BLOCK_H, BLOCK_G), tl.float32)
        ones = tl.full((BLOCK_H,), 1.0, tl.float32)
        for start in range(0, last, BLOCK_G):
            sums += _shares(own, start + columns, last, highest, ones, BLOCK_H)
        total = tl.sum(sums, axis=1)
        # Bits of positive floats are ordered as they are. `low` is reached by enough mass, `high` is not (or never tried).
        low, high = 0x2F800000, 0x3F800001
        for _ in range(20):
            middle = (low + high) // 2
            threshold = tl.cast(middle, tl.float32, bitcast=True)
            sums = tl.zeros((BLOCK_H, BLOCK_G), tl.float32)
            for start in range(0, last, BLOCK_G):
                granules = start + columns
                shares = _shares(own, granules, last, highest, total, BLOCK_H)
                chosen = _rank(shares, granules, last, first_recent) >= threshold
                sums += tl.where(chosen[None, :], shares, 0.0)
            enough = tl.min(tl.sum(sums, axis=1)) >= mass
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        # Below the lowest threshold tried, everything is kept.
        threshold = tl.cast(tl.where(low == 0x2F800000, 0, low), tl.float32, bitcast=True)
        sums = tl.zeros((BLOCK_H, BLOCK_G), tl.float32)
        count = 0
        listed = granules_out + (seq * num_kv_heads + kv_head).to(tl.int64) * most
        for start in range(0, last, BLOCK_G):
            granules = start + columns
            shares = _shares(own, granules, last, highest, total, BLOCK_H)
            chosen = _rank(shares, granules, last, first_recent) >= threshold
            sums += tl.where(chosen[None, :], shares, 0.0)
            places = count + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
            tl.store(listed + places, granules, mask=chosen)
            count += tl.sum(chosen.to(tl.int32))
        tl.store(lengths_out + seq * num_kv_heads + kv_head, count * TOKENS)
        if telemetry is not None:
            tl.atomic_add(telemetry, 1)
            tl.atomic_add(telemetry + 1, (count * TOKENS).to(tl.int64))
            tl.atomic_add(telemetry + 2, length.to(tl.int64))
            tl.atomic_add(telemetry + 3, (tl.min(tl.sum(sums, axis=1)) * 1000000.0).to(tl.int64))


@triton.jit
def _attend_kernel(
    query,
    pages,
    scales,
    tables,
    lens,
    granules,
    lengths,
    parts,
    highests,
    totals,
    stride_row,
    stride_head,
    stride_table,
    num_kv_heads,
    head_dim,
    most,
    scale,
    cap,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN_D: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per sequence, KV head and SPLIT_KEYS listed tokens."""
    seq, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lens + seq)
    own_length = tl.load(lengths + seq * num_kv_heads + kv_head)
    first = split * SPLIT_KEYS
    last = tl.minimum(first + SPLIT_KEYS, own_length)
    if first < last:
        members, dims = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
        inside = members < GROUP
        heads = kv_head * GROUP + members
        q = tl.load(
            query + seq.to(tl.int64) * stride_row + heads[:, None] * stride_head + dims[None, :],
            mask=inside[:, None] & (dims < head_dim)[None, :],
            other=0.0,
        )
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        row_positions = tl.zeros((BLOCK_M,), tl.int32) + (length - 1)
        table = tables + seq.to(tl.int64) * stride_table
        listed = granules + (seq * num_kv_heads + kv_head).to(tl.int64) * most
        for start in range(first, last, BLOCK_N):
            places = start + tl.arange(0, BLOCK_N)
            granule = tl.load(listed + places // TOKENS, mask=places < last, other=0)
            # What is not listed stands past the end, where nothing is read.
            positions = tl.where(places < last, granule * TOKENS + places % TOKENS, length)
            acc, highest, total = step(
                q,
                acc,
                highest,
                total,
                positions,
                row_positions,
                length,
                table,
                pages,
                scales,
                kv_head,
                num_kv_heads,
                head_dim,
                scale,
                0,
                cap,
                True,
                False,
                SOFTCAP,
                BLOCK_D,
                EVEN_D,
                PAGE,
            )
        at = (seq * num_kv_heads * GROUP + heads).to(tl.int64) * tl.num_programs(2) + split
        there = inside[:, None] & (dims < head_dim)[None, :]
        tl.store(parts + at[:, None] * head_dim + dims[None, :], acc, mask=there)
        tl.store(highests + at, highest, mask=inside)
        tl.store(totals + at, total, mask=inside)


def variants(arch: str) -> Iterator[Variant]:
    strides = {"stride_row": "i32", "stride_head": "i32", "stride_table": "i32"}
    counts = {"num_kv_heads": "i32", "head_dim": "i32", "most": "i32"}
    unaligned = frozenset({"stride_table", "num_kv_heads", "most"})
    for block_d in HEAD_SIZES:
        for kind in ("bf16", "i8"):
            pools = {"query": "*bf16", "pages": f"*{kind}", **({"scales": "*fp32"} if kind == "i8" else {})}
            absent = {} if kind == "i8" else {"scales": None}
            shape = {
                "GROUP": 4,
                "BLOCK_M": LEAST_ROWS,
                "BLOCK_D": block_d,
                "PAGE": PAGE_SIZE,
                "TOKENS": GRANULE,
            }
            for formula in (KEYS, MIN_MAX, MEAN_STD):
                if formula != KEYS and kind == "i8":
                    continue  # the pages are not read
                name = {KEYS: f"keys {kind}", MIN_MAX: "min/max", MEAN_STD: "mean/std"}[formula]
                summaries = {} if formula == KEYS else {"summaries": "*bf16"}
                config = _score_config(formula, block_d, kind == "i8", None)
                yield Variant(
                    f"sparse_attention score {name} D={block_d}",
                    _score_kernel,
                    {
                        **pools,
                        **summaries,
                        "masses": "*fp32",
                        "tables": "*i32",
                        "lens": "*i32",
                        **strides,
                        **counts,
                        "scaling": "fp32",
                        "cap": "fp32",
                    },
                    {
                        **absent,
                        **({} if summaries else {"summaries": None}),
                        **shape,
                        "FORMULA": formula,
                        "SOFTCAP": False,
                        **config.tiles,
                    },
                    config.num_warps,
                    config.num_stages,
                    mma="bf16",
                    unaligned=unaligned,
                    case=_score_case(formula, block_d, kind == "i8"),
                )
            config = _attend_config(block_d, kind == "i8", None)
            yield Variant(
                f"sparse_attention attend {kind} D={block_d} 16x{config.tiles['BLOCK_N']}",
                _attend_kernel,
                {
                    **pools,
                    "tables": "*i32",
                    "lens": "*i32",
                    "granules": "*i32",
                    "lengths": "*i32",
                    "parts": "*fp32",
                    "highests": "*fp32",
                    "totals": "*fp32",
                    **strides,
                    **counts,
                    "scale": "fp32",
                    "cap": "fp32",
                },
                {**absent, **shape, "SOFTCAP": False, "EVEN_D": True, "SPLIT_KEYS": SPLIT, **config.tiles},
                config.num_warps,
                config.num_stages,
                mma="bf16",
                unaligned=unaligned,
                case=by_head("attend", block_d, kind == "i8"),
            )
    config = choose("sparse_attention", "select", SELECT, None)
    yield Variant(
        "sparse_attention select",
        _select_kernel,
        {
            "masses": "*fp32",
            "lens": "*i32",
            "wanted": "*fp32",
            "granules_out": "*i32",
            "lengths_out": "*i32",
            "telemetry": "*i64",
            "num_kv_heads": "i32",
            "most": "i32",
        },
        {"GROUP": 4, "BLOCK_H": 4, "TOKENS": GRANULE, "RECENT": RECENT_TOKENS, **config.tiles},
        config.num_warps,
        config.num_stages,
        unaligned=unaligned,
        wide_loads=False,
        case="select",
    )
