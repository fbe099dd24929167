"""Prompts over long contexts on the GPU: each block of 64 positions attends to those blocks of 64 keys that hold its mass.

Three launches in place of one. The first gives the logarithm of every row's attention mass in each block of keys: the keys
are read as stored, INT8 ones multiplied as INT8 with queries rounded likewise, and no value is read. The second finds, for
each block of queries and KV head, the highest threshold at which the blocks of keys whose share of any row's attention
reaches it hold `mass` for every row of every head of the group, and lists them; the first block, the queries' own and the
two before it are always in. The third is the step of `paged_attention` over the list, "all blocks" being dense attention.
(The definition is in `kernels/reference/sparse_prompt.py`.)

A block is computed alone and never in parts, so it depends neither on its batch-mates nor on how its prompt was cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..span import PAGE_SIZE, PROMPT_BLOCK
from .arguments import FLOATS, require, require_positive
from .config import Config, arch_of, choose, fitting
from .paged_attention import LOG2E, default_prefill, finish, step, store_result
from .paged_batch import PagedBatch
from .quantize_activation import scale_of, to_int8
from .tunable import HEAD_SIZES, by_head, head_size
from .variant import Variant

RECENT_BLOCKS = 2
# BLOCK_M: rows that a program scores at once, of all heads of a group; BLOCKS: of keys, that it goes through.
SCORE = Config({"BLOCK_M": 128, "BLOCKS": 32}, num_warps=8, num_stages=2)
# Attention is launched as a prefill is, but where that would spill: by chip, width of a head, and whether pages are INT8.
ATTEND = {
    ("sm_80", 128, False): Config({"BLOCK_M": 128, "BLOCK_N": 32}, num_warps=8, num_stages=2),
    ("sm_80", 256, True): Config({"BLOCK_M": 32, "BLOCK_N": 16}, num_warps=4, num_stages=2),
}
# SHARES: that a program chooses among at a time, rows by blocks.
SELECT = Config({"SHARES": 8192}, num_warps=16, num_stages=1)
# Bytes of the logarithms; blocks of queries beyond it go in another round of launches.
WORKSPACE = 64 << 20
SUMS = 4
"""Of the telemetry, [4] int64: blocks decided, tokens kept, tokens of context, and millionths of the least mass kept."""


@dataclass(slots=True)
class BlockSelection:
    """`blocks` [Q, Hkv, N] int32, ascending, of which the first `counts` [Q, Hkv] int32 count."""

    blocks: Tensor
    counts: Tensor


def sparse_prompt(
    query: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    batch: PagedBatch,
    out: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    telemetry: Tensor | None = None,
) -> list[BlockSelection]:
    """Writes the rows of `out` [T, Hq, D] that belong to sparse prompts of `batch`; the rest of it stays.

    Args:
        query, pages, scales: as `paged_attention` takes them.
        telemetry: [SUMS] int64 to add to.

    Returns what was attended to, in the order of `batch.prompt_blocks`. Raises ValueError naming an argument that does not
    fit.
    """
    _, num_heads, head_dim = query.shape
    num_kv_heads = pages.shape[1]
    require("query", query, (None, None, None), FLOATS)
    require_positive("scaling", scaling)
    require("pages", pages, (None, num_kv_heads, 2, PAGE_SIZE, head_dim), ("int8", *FLOATS), query)
    require("out", out, tuple(query.shape), FLOATS, query)
    if (scales is not None) != (pages.dtype is torch.int8):
        raise ValueError(f"scales are for int8 pages, and only for them; pages are {pages.dtype}.")
    assert batch.prompt_blocks is not None and batch.prompt_masses is not None
    rows = PROMPT_BLOCK * num_heads
    at_once = max(1, WORKSPACE // (rows * batch.most_prompt_blocks * 4))
    return [
        _some_blocks(query, pages, scales, batch, chosen, masses, out, scaling, softcap, telemetry)
        for chosen, masses in zip(
            batch.prompt_blocks.split(at_once), batch.prompt_masses.split(at_once), strict=True
        )
    ]


def _some_blocks(
    query: Tensor,
    pages: Tensor,
    scales: Tensor | None,
    batch: PagedBatch,
    chosen: Tensor,
    masses: Tensor,
    out: Tensor,
    scaling: float,
    softcap: float | None,
    telemetry: Tensor | None,
) -> BlockSelection:
    _, num_heads, head_dim = query.shape
    num_kv_heads, count, most = pages.shape[1], chosen.shape[0], batch.most_prompt_blocks
    group = num_heads // num_kv_heads
    rows = PROMPT_BLOCK * group
    block_d = max(16, triton.next_power_of_2(head_dim))
    log_masses = torch.empty(count, num_kv_heads, most, rows, device=query.device)
    strides = (query.stride(0), query.stride(1), batch.block_tables.stride(0), num_kv_heads, head_dim)
    block_r = triton.next_power_of_2(rows)
    config = fitting(_score_config(block_d, scales is not None, query.device), query.dtype, query.device)
    score_rows = min(config.tiles["BLOCK_M"], block_r)
    tiles = triton.cdiv(rows, score_rows) * triton.cdiv(most, config.tiles["BLOCKS"])
    _score_kernel[(tiles, num_kv_heads, count)](
        query,
        pages,
        scales,
        log_masses,
        batch.block_tables,
        chosen,
        *strides,
        most,
        scaling,
        0.0 if softcap is None else softcap,
        GROUP=group,
        BLOCK_D=block_d,
        PAGE=PAGE_SIZE,
        SOFTCAP=softcap is not None,
        **{**config.tiles, "BLOCK_M": score_rows},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    selection = BlockSelection(
        torch.empty(count, num_kv_heads, most, dtype=torch.int32, device=query.device),
        torch.empty(count, num_kv_heads, dtype=torch.int32, device=query.device),
    )
    config = choose("sparse_prompt", "select", SELECT, query.device)
    _select_kernel[(num_kv_heads, count)](
        log_masses,
        chosen,
        masses,
        selection.blocks,
        selection.counts,
        telemetry,
        num_kv_heads,
        most,
        GROUP=group,
        PAGE=PAGE_SIZE,
        RECENT=RECENT_BLOCKS,
        BLOCK_R=block_r,
        **config.tiles,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    config = _attend_config(block_d, scales is not None, arch_of(query.device), query.device)
    config = fitting(config, query.dtype, query.device)
    attend_rows = min(config.tiles["BLOCK_M"], block_r)
    _attend_kernel[(triton.cdiv(rows, attend_rows), num_kv_heads, count)](
        query,
        pages,
        scales,
        out,
        batch.block_tables,
        chosen,
        selection.blocks,
        selection.counts,
        *strides,
        most,
        scaling * LOG2E,
        0.0 if softcap is None else softcap / scaling,
        GROUP=group,
        BLOCK_D=block_d,
        PAGE=PAGE_SIZE,
        SOFTCAP=softcap is not None,
        EVEN_D=head_dim == block_d,
        **{**config.tiles, "BLOCK_M": attend_rows},
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return selection


def _score_config(block_d: int, int8: bool, device: torch.device | None) -> Config:
    return choose("sparse_prompt", by_head("score", block_d, int8), SCORE, device)


def _attend_config(block_d: int, int8: bool, arch: str, device: torch.device | None) -> Config:
    case = by_head("attend", block_d, int8)
    return choose("sparse_prompt", case, default_attend(block_d, int8, arch), device)


@cache
def default_attend(block_d: int, int8: bool, arch: str) -> Config:
    """A prefill's, its tile of keys cut to a page."""
    chip = "sm_90" if arch == "sm_90" else "sm_80"
    found = ATTEND.get((chip, head_size(block_d), int8)) or default_prefill(block_d, int8, chip)
    return replace(found, tiles={**found.tiles, "BLOCK_N": min(found.tiles["BLOCK_N"], PAGE_SIZE)})


@triton.jit
def _load_rows(
    query,
    chosen,
    tile,
    kv_head,
    stride_row,
    stride_head,
    head_dim,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Rows of one block of queries, the heads of a group beside each other: q, whose positions in the block, which exist."""
    members, dims = tile * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    tokens = members // GROUP
    inside = tokens < tl.load(chosen + 2)
    rows = tl.load(chosen + 1) + tokens
    heads = kv_head * GROUP + members % GROUP
    q = tl.load(
        query + rows[:, None].to(tl.int64) * stride_row + heads[:, None] * stride_head + dims[None, :],
        mask=inside[:, None] & (dims < head_dim)[None, :],
        other=0.0,
    )
    return q, rows, heads, tokens, inside


@triton.jit
def _score_kernel(
    query,
    pages,
    scales,
    log_masses,
    tables,
    prompt_blocks,
    stride_row,
    stride_head,
    stride_table,
    num_kv_heads,
    head_dim,
    most,
    scaling,
    cap,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One program per block of queries, KV head, tile of rows and BLOCKS blocks of keys: log2 of each row's mass in each."""
    kv_head, number = tl.program_id(1), tl.program_id(2)
    row_tiles: tl.constexpr = (PAGE * GROUP + BLOCK_M - 1) // BLOCK_M
    tile, part = tl.program_id(0) % row_tiles, tl.program_id(0) // row_tiles
    chosen = prompt_blocks + number * 4
    block = tl.load(chosen + 3)
    first, last = part * BLOCKS, tl.minimum((part + 1) * BLOCKS, block + 1)
    if first < last:
        q, _, _, tokens, _ = _load_rows(
            query, chosen, tile, kv_head, stride_row, stride_head, head_dim, GROUP, BLOCK_M, BLOCK_D, PAGE
        )
        q_scale = tl.full((BLOCK_M,), 1.0, tl.float32)
        if scales is not None:
            q_scale = scale_of(tl.max(tl.abs(q.to(tl.float32)), axis=1))
            q = to_int8(q.to(tl.float32), q_scale[:, None])
        table = tables + tl.load(chosen).to(tl.int64) * stride_table
        num_rows = tl.load(chosen + 2)
        dims, places = tl.arange(0, BLOCK_D), tl.arange(0, PAGE)
        members = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        own = log_masses + (number.to(tl.int64) * num_kv_heads + kv_head) * most * (PAGE * GROUP) + members
        for key_block in range(first, last):
            side = (tl.load(table + key_block).to(tl.int64) * num_kv_heads + kv_head) * 2 * PAGE
            # Of the queries' own block only what is stored is read.
            stored = (key_block < block) | (places < num_rows)
            k = tl.load(
                pages + (side + places)[None, :] * head_dim + dims[:, None],
                mask=stored[None, :] & (dims < head_dim)[:, None],
                other=0,
            )
            if scales is not None:
                scores = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32)
                scores *= q_scale[:, None] * tl.load(scales + side + places, mask=stored, other=0.0)[None, :]
            else:
                scores = tl.dot(q, k.to(q.dtype), input_precision="ieee")
            scores *= scaling
            if SOFTCAP:
                scores = cap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * 1.4426950408889634 / cap)) + 1.0))
            seen = (key_block < block) | (places[None, :] <= tokens[:, None])
            scores = tl.where(seen & stored[None, :], scores * 1.4426950408889634, float("-inf"))
            highest = tl.max(scores, axis=1)
            total = tl.sum(tl.exp2(scores - highest[:, None]), axis=1)
            to = own + tl.cast(key_block, tl.int64) * (PAGE * GROUP)
            tl.store(to, highest + tl.log2(total), mask=members < PAGE * GROUP)


@triton.jit
def _shares(own, blocks, last, there, highest, total, ROWS: tl.constexpr, BLOCK_R: tl.constexpr):
    """Shares [BLOCK_R, BLOCK_G] of the rows' mass in `blocks`; zero past the last block and for rows that are none."""
    rows = tl.arange(0, BLOCK_R)
    known = there[:, None] & (blocks < last)[None, :]
    log_mass = tl.load(own + blocks[None, :] * ROWS + rows[:, None], mask=known, other=float("-inf"))
    return tl.exp2(log_mass - highest[:, None]) / total[:, None]


@triton.jit
def _rank(shares, blocks, last, RECENT: tl.constexpr):
    """The largest share of any row; above all where a block is always kept."""
    always = (blocks == 0) | (blocks >= last - 1 - RECENT)
    return tl.where(blocks < last, tl.where(always, 2.0, tl.max(shares, axis=0)), -1.0)


@triton.jit
def _select_kernel(
    log_masses,
    prompt_blocks,
    wanted,
    blocks_out,
    counts_out,
    telemetry,
    num_kv_heads,
    most,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    RECENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SHARES: tl.constexpr,
):
    """One program per block of queries and KV head."""
    BLOCK_G: tl.constexpr = SHARES // BLOCK_R if SHARES > 4 * BLOCK_R else 4
    kv_head, number = tl.program_id(0), tl.program_id(1)
    ROWS: tl.constexpr = PAGE * GROUP
    chosen = prompt_blocks + number * 4
    last = tl.load(chosen + 3) + 1
    num_rows = tl.load(chosen + 2)
    there = tl.arange(0, BLOCK_R) < num_rows * GROUP
    mass = tl.load(wanted + number)
    place = number.to(tl.int64) * num_kv_heads + kv_head
    own = log_masses + place * most * ROWS
    rows, columns = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_G)
    # Sums are kept by column and added up behind each loop: reductions within would cost a barrier each.
    best = tl.full((BLOCK_R, BLOCK_G), float("-inf"), tl.float32)
    for start in range(0, last, BLOCK_G):
        blocks = start + columns
        known = there[:, None] & (blocks < last)[None, :]
        best = tl.maximum(
            best, tl.load(own + blocks[None, :] * ROWS + rows[:, None], mask=known, other=float("-inf"))
        )
    highest = tl.where(there, tl.max(best, axis=1), 0.0)
    sums = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    ones = tl.full((BLOCK_R,), 1.0, tl.float32)
    for start in range(0, last, BLOCK_G):
        sums += _shares(own, start + columns, last, there, highest, ones, ROWS, BLOCK_R)
    total = tl.where(there, tl.sum(sums, axis=1), 1.0)
    # Thresholds are bits of positive floats, ordered as these are, in steps of a 32nd of an octave. `low` is reached by
    # enough mass, `high` is not (or never tried).
    low, high = 0x2F800000 >> 18, (0x3F800000 >> 18) + 1
    for _ in range(10):
        middle = (low + high) // 2
        threshold = tl.cast(middle << 18, tl.float32, bitcast=True)
        sums = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
        for start in range(0, last, BLOCK_G):
            blocks = start + columns
            shares = _shares(own, blocks, last, there, highest, total, ROWS, BLOCK_R)
            kept = _rank(shares, blocks, last, RECENT) >= threshold
            sums += tl.where(kept[None, :], shares, 0.0)
        enough = tl.min(tl.where(there, tl.sum(sums, axis=1), 2.0)) >= mass
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    # Below the lowest threshold tried, everything is kept.
    threshold = tl.cast(tl.where(low == 0x2F800000 >> 18, 0, low << 18), tl.float32, bitcast=True)
    sums = tl.zeros((BLOCK_R, BLOCK_G), tl.float32)
    count = 0
    listed = blocks_out + place * most
    for start in range(0, last, BLOCK_G):
        blocks = start + columns
        shares = _shares(own, blocks, last, there, highest, total, ROWS, BLOCK_R)
        kept = _rank(shares, blocks, last, RECENT) >= threshold
        sums += tl.where(kept[None, :], shares, 0.0)
        tl.store(listed + count + tl.cumsum(kept.to(tl.int32), axis=0) - 1, blocks, mask=kept)
        count += tl.sum(kept.to(tl.int32))
    tl.store(counts_out + place, count)
    if telemetry is not None:
        held = tl.min(tl.where(there, tl.sum(sums, axis=1), 2.0))
        short = PAGE - num_rows
        tl.atomic_add(telemetry, 1)
        tl.atomic_add(telemetry + 1, (count * PAGE - short).to(tl.int64))
        tl.atomic_add(telemetry + 2, (last * PAGE - short).to(tl.int64))
        tl.atomic_add(telemetry + 3, (held * 1000000.0).to(tl.int64))


@triton.jit
def _attend_kernel(
    query,
    pages,
    scales,
    out,
    tables,
    prompt_blocks,
    blocks,
    counts,
    stride_row,
    stride_head,
    stride_table,
    num_kv_heads,
    head_dim,
    most,
    scale,
    cap,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program per block of queries, KV head and tile of its rows; keys in ascending order, their own block last."""
    tile, kv_head, number = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    chosen = prompt_blocks + number * 4
    num_rows = tl.load(chosen + 2)
    if tile * BLOCK_M < num_rows * GROUP:
        q, rows, heads, tokens, inside = _load_rows(
            query, chosen, tile, kv_head, stride_row, stride_head, head_dim, GROUP, BLOCK_M, BLOCK_D, PAGE
        )
        own_first = tl.load(chosen + 3) * PAGE
        limit = own_first + num_rows
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        row_positions = own_first + tokens
        table = tables + tl.load(chosen).to(tl.int64) * stride_table
        place = number.to(tl.int64) * num_kv_heads + kv_head
        listed = blocks + place * most
        # Every row sees all of the listed blocks but the last, which is its own.
        per_block: tl.constexpr = PAGE // BLOCK_N
        whole = (tl.load(counts + place) - 1) * per_block
        for index in range(whole):
            start = tl.load(listed + index // per_block) * PAGE + index % per_block * BLOCK_N
            acc, highest, total = step(
                q,
                acc,
                highest,
                total,
                start + tl.arange(0, BLOCK_N),
                row_positions,
                limit,
                table,
                pages,
                scales,
                kv_head,
                num_kv_heads,
                head_dim,
                scale,
                0,
                cap,
                False,
                False,
                SOFTCAP,
                BLOCK_D,
                EVEN_D,
                PAGE,
            )
        for start in range(own_first, limit, BLOCK_N):
            acc, highest, total = step(
                q,
                acc,
                highest,
                total,
                start + tl.arange(0, BLOCK_N),
                row_positions,
                limit,
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
        no_sink = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        value, log2_sum = finish(acc, highest, total, no_sink)
        store_result(out, None, value, log2_sum, rows, heads, inside, num_kv_heads * GROUP, head_dim, BLOCK_D)


def variants(arch: str) -> Iterator[Variant]:
    strides = {"stride_row": "i32", "stride_head": "i32", "stride_table": "i32"}
    counts = {"num_kv_heads": "i32", "head_dim": "i32", "most": "i32"}
    unaligned = frozenset({"stride_table", "num_kv_heads", "most"})
    lists = {"tables": "*i32", "prompt_blocks": "*i32"}
    for block_d in HEAD_SIZES:
        for kind in ("bf16", "i8"):
            pools = {"query": "*bf16", "pages": f"*{kind}", **({"scales": "*fp32"} if kind == "i8" else {})}
            absent = {} if kind == "i8" else {"scales": None}
            shape = {"GROUP": 4, "BLOCK_D": block_d, "PAGE": PAGE_SIZE, "SOFTCAP": False}
            config = _score_config(block_d, kind == "i8", None)
            yield Variant(
                f"sparse_prompt score {kind} D={block_d} {config.tiles['BLOCK_M']}x{PAGE_SIZE}",
                _score_kernel,
                {
                    **pools,
                    "log_masses": "*fp32",
                    **lists,
                    **strides,
                    **counts,
                    "scaling": "fp32",
                    "cap": "fp32",
                },
                {**absent, **shape, **config.tiles},
                config.num_warps,
                config.num_stages,
                mma="s8" if kind == "i8" else "bf16",
                unaligned=unaligned,
                case=by_head("score", block_d, kind == "i8"),
            )
            config = _attend_config(block_d, kind == "i8", arch, None)
            tile = f"{config.tiles['BLOCK_M']}x{config.tiles['BLOCK_N']}"
            yield Variant(
                f"sparse_prompt attend {kind} D={block_d} {tile}",
                _attend_kernel,
                {
                    **pools,
                    "out": "*bf16",
                    **lists,
                    "blocks": "*i32",
                    "counts": "*i32",
                    **strides,
                    **counts,
                    "scale": "fp32",
                    "cap": "fp32",
                },
                {**absent, **shape, "EVEN_D": True, **config.tiles},
                config.num_warps,
                config.num_stages,
                mma="bf16",
                unaligned=unaligned,
                case=by_head("attend", block_d, kind == "i8"),
            )
    config = choose("sparse_prompt", "select", SELECT, None)
    for group in (1, 4, 8):
        rows = PROMPT_BLOCK * group
        yield Variant(
            f"sparse_prompt select {rows} rows",
            _select_kernel,
            {
                "log_masses": "*fp32",
                "prompt_blocks": "*i32",
                "wanted": "*fp32",
                "blocks_out": "*i32",
                "counts_out": "*i32",
                "telemetry": "*i64",
                "num_kv_heads": "i32",
                "most": "i32",
            },
            {
                "GROUP": group,
                "PAGE": PAGE_SIZE,
                "RECENT": RECENT_BLOCKS,
                "BLOCK_R": rows,
                **config.tiles,
            },
            config.num_warps,
            config.num_stages,
            unaligned=unaligned,
            wide_loads=False,
            case="select",
        )
