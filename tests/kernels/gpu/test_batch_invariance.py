"""A row has the same bits alone, in any batch, and at any place of it: for every kernel there is.

A row of attention is a sequence, with one token or some.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from paged_pool import PagedPool
from quantized_rows import quantized_rows
from torch import Tensor

from penstock.kernels.draw import Draw
from penstock.kernels.gpu import grouped_int8_matmul as grouped
from penstock.kernels.gpu import int8_matmul as matmul
from penstock.kernels.gpu import paged_attention as attention
from penstock.kernels.gpu import quantize_activation as quantize
from penstock.kernels.gpu import rms_norm as norm
from penstock.kernels.gpu import sample as draws
from penstock.kernels.gpu import silu_mul as gate
from penstock.kernels.gpu import weight_only_matmul as weight_only
from penstock.kernels.gpu.ahead_of_time import kernel_modules
from penstock.kernels.gpu.config import Config
from penstock.kernels.gpu.rotary import rotary
from penstock.kernels.gpu.sparse_attention import KEYS, MEAN_STD, MIN_MAX, sparse_attention
from penstock.kernels.gpu.sparse_prompt import sparse_prompt
from penstock.kernels.quantize_weight import GROUP, pack_int4, quantize_weight
from penstock.kernels.quantized_rows import QuantizedRows
from penstock.kernels.routing import Routing
from penstock.kernels.span import Span


@dataclass
class Rows:
    """`run(some)` gives for each of the rows `some`, in that order, what the kernel computes of it."""

    count: int
    run: Callable[[list[int]], list[list[Tensor]]]


def by_row(*outputs: Tensor | None) -> list[list[Tensor]]:
    there = [output for output in outputs if output is not None]
    return [list(row) for row in zip(*there, strict=True)]


def parts(rows: QuantizedRows) -> tuple[Tensor, ...]:
    return rows.values, rows.scale, rows.zero


def of_both(made: tuple[Tensor, QuantizedRows | None]) -> list[list[Tensor]]:
    y, rows = made
    assert rows is not None
    return by_row(y, *parts(rows))


def int8_matmul(device, monkeypatch) -> Rows:
    """From the kernel for few rows, which splits K, to the one for many."""
    x, weight_scale = quantized_rows(150, 2100, device), torch.rand(70, device=device)
    weight = torch.randint(-127, 128, (70, 2100), dtype=torch.int8, device=device)
    bias = torch.randn(70, device=device)
    assert matmul.split_k(2, 9) == 4, "parts, added up by atomics"
    total = matmul.sum_rows(weight, weight_scale)
    return Rows(150, lambda some: by_row(matmul.int8_matmul(x.of(some), weight, weight_scale, total, bias)))


def grouped_int8_matmul(device, monkeypatch) -> Rows:
    """From the launch for few rows of an expert to the one for many; rows keep their experts, and come in their order."""
    count = 150
    x = quantized_rows(count, 200, device)
    weight = torch.randint(-127, 128, (3, 70, 200), dtype=torch.int8, device=device)
    weight_scale, bias = torch.rand(3, 70, device=device), torch.randn(3, 70, device=device)
    total = matmul.sum_rows(weight, weight_scale)
    experts = torch.randint(0, 3, (count, 1), device=device)
    assert count > grouped.DECODE_ROWS * 3, "more than few rows"

    def run(some: list[int]) -> list[list[Tensor]]:
        routing = Routing.of(experts[some], 3)
        found = grouped.grouped_int8_matmul(
            x.of(some), weight, weight_scale, total, routing.offsets, routing.tokens, bias
        )
        return by_row(found[routing.rows[:, 0]])

    return Rows(count, run)


def weight_only_matmul(bits: int) -> Callable[..., Rows]:
    def rows(device, monkeypatch) -> Rows:
        weight, scales = quantize_weight(
            torch.randn(70, 1100, device=device), bits, GROUP if bits == 4 else None
        )
        weight = pack_int4(weight) if bits == 4 else weight
        assert weight_only.parts_of(70, 9) == 4, "parts, added in order"
        x = torch.randn(150, 1100, device=device)
        return Rows(150, lambda some: by_row(weight_only.weight_only_matmul(x[some], weight, scales)))

    return rows


def quantize_activation(max_block: int) -> Callable[..., Rows]:
    def rows(device, monkeypatch) -> Rows:
        monkeypatch.setattr(quantize, "MAX_BLOCK", max_block)
        x = torch.randn(9, 150, device=device) * torch.rand(9, 1, device=device)
        return Rows(9, lambda some: by_row(*parts(quantize.quantize_activation(x[some], pad_to=16))))

    return rows


def rms_norm(max_block: int) -> Callable[..., Rows]:
    def rows(device, monkeypatch) -> Rows:
        monkeypatch.setattr(norm, "MAX_BLOCK", max_block)
        x, weight = torch.randn(9, 150, device=device), torch.randn(150, device=device)
        return Rows(9, lambda some: of_both(norm.rms_norm(x[some], weight, 1e-6, pad_to=16)))

    return rows


def silu_mul(max_block: int) -> Callable[..., Rows]:
    def rows(device, monkeypatch) -> Rows:
        monkeypatch.setattr(gate, "MAX_BLOCK", max_block)
        x = torch.randn(9, 300, device=device)
        return Rows(9, lambda some: of_both(gate.silu_mul(*x[some].split(150, dim=1), pad_to=16)))

    return rows


def rotary_embedding(device, monkeypatch) -> Rows:
    query, key = torch.randn(7, 6, 80, device=device), torch.randn(7, 2, 80, device=device)
    cos, sin = torch.randn(2, 7, 48, device=device).unbind()

    def run(some: list[int]) -> list[list[Tensor]]:
        turned = rotary(query[some].transpose(0, 1), key[some].transpose(0, 1), cos[some], sin[some])
        return by_row(*(x.transpose(0, 1) for x in turned))

    return Rows(7, run)


def sample(device, monkeypatch) -> Rows:
    monkeypatch.setattr(draws, "DRAW", Config({"BLOCK": 32}, num_warps=1, num_stages=1))
    logits = torch.randn(6, 60, device=device) * 3
    asked = [
        Draw(0.0, -1, 1.0, 0.0, 1, 1),
        Draw(1.0, -1, 1.0, 0.0, 2, 5),
        Draw(0.7, 5, 1.0, 0.0, 3, 5),
        Draw(1.3, -1, 0.8, 0.0, 4, 9),
        Draw(1.0, 30, 0.9, 0.05, 5, 2),
        Draw(1.0, 7, 0.5, 0.0, 6, 0),
    ]
    return Rows(6, lambda some: by_row(*draws.sample(logits[some], [asked[row] for row in some])))


# (tokens stored before, new tokens): decodes at and around the bounds of pages and splits, and chunks.
DECODES = [(0, 1), (5, 1), (63, 1), (64, 1), (127, 1), (300, 1)]
CHUNKS = [(0, 2), (10, 20), (64, 64), (100, 33)]


def store(int8: bool, formula: int) -> Callable[..., Rows]:
    """Into a pool that holds what was stored before of every sequence; what each finds of its own pages."""

    def rows(device, monkeypatch) -> Rows:
        sequences = [(0, 1), (5, 1), (63, 1), (64, 1), (0, 2), (10, 20), (60, 70)]
        pool = PagedPool(sequences, device, dim=80, int8=int8, formula=formula)
        for table, (first, _), kv in zip(pool.tables, sequences, pool.kv, strict=True):
            if first:
                pool.store([Span(table, 0, first)], [kv[:, :first]])
        before = [None if x is None else x.clone() for x in (pool.pages, pool.scales, pool.summaries)]

        def run(some: list[int]) -> list[list[Tensor]]:
            pool.pages, pool.scales, pool.summaries = (None if x is None else x.clone() for x in before)
            order = pool.order(some)
            pool.store(
                [Span(pool.tables[row], *sequences[row]) for row in order],
                [pool.kv[row][:, sequences[row][0] :] for row in order],
            )
            pools = [x for x in (pool.pages, pool.scales, pool.summaries) if x is not None]
            return [[x[pool.tables[row]] for x in pools] for row in some]

        return Rows(len(sequences), run)

    return rows


def paged_attention(sequences, **options) -> Callable[..., Rows]:
    kinds = {key: options.pop(key) for key in ("dim", "int8", "group") if key in options}

    def rows(device, monkeypatch) -> Rows:
        monkeypatch.setattr(attention, "SPLIT", 64)
        pool = PagedPool(sequences, device, **kinds).fill()

        def run(some: list[int]) -> list[list[Tensor]]:
            order = pool.order(some)
            query = torch.cat([pool.queries[row] for row in order])
            found = attention.paged_attention(
                query, pool.pages, pool.scales, pool.batch(order), scaling=0.2, with_lse=True, **options
            )
            return pool.in_turn(some, [found.out, found.lse])

        return Rows(len(sequences), run)

    return rows


def sparse(formula: int, int8: bool) -> Callable[..., Rows]:
    def rows(device, monkeypatch) -> Rows:
        sequences = [(64, 1), (192, 1), (235, 1)]
        stored = None if formula == KEYS else formula
        pool = PagedPool(sequences, device, int8=int8, formula=stored, sparse=True).fill()

        def run(some: list[int]) -> list[list[Tensor]]:
            query = torch.cat([pool.queries[row] for row in some])
            out = torch.empty_like(query)
            chosen = sparse_attention(
                query,
                pool.pages,
                pool.scales,
                pool.summaries,
                pool.batch(some),
                out,
                scaling=0.5,
                formula=formula,
            )
            return by_row(out, chosen.lengths)

        return Rows(len(sequences), run)

    return rows


def sparse_prompts(**kinds) -> Callable[..., Rows]:
    """Chunks that begin at a block, end within one, or are all of a prompt; and what was selected for them."""

    def rows(device, monkeypatch) -> Rows:
        sequences = [(0, 20), (256, 70), (320, 1)]
        pool = PagedPool(sequences, device, sparse=True, prompts=True, **kinds).fill()

        def run(some: list[int]) -> list[list[Tensor]]:
            query = torch.cat([pool.queries[row] for row in some])
            out = torch.empty_like(query)
            batch = pool.batch(some)
            (found,) = sparse_prompt(query, pool.pages, pool.scales, batch, out, scaling=0.5)
            assert batch.prompt_blocks is not None
            blocks: list[list[Tensor]] = [[] for _ in some]
            listed = found.blocks.where(
                torch.arange(found.blocks.shape[2], device=device) < found.counts[..., None], -1
            )
            for (sequence, *_, number), own in zip(batch.prompt_blocks.tolist(), listed, strict=True):
                blocks[sequence].append(own[:, : number + 1].contiguous())
            parts = out.split([sequences[row][1] for row in some])
            return [[part, *own] for part, own in zip(parts, blocks, strict=True)]

        return Rows(len(sequences), run)

    return rows


KERNELS: dict[str, Callable[..., Rows]] = {
    "int8_matmul": int8_matmul,
    "grouped_int8_matmul": grouped_int8_matmul,
    "weight_only_matmul W8": weight_only_matmul(8),
    "weight_only_matmul W4": weight_only_matmul(4),
    "quantize_activation": quantize_activation(8192),
    "quantize_activation in pieces": quantize_activation(64),
    "rms_norm": rms_norm(8192),
    "rms_norm in pieces": rms_norm(64),
    "silu_mul": silu_mul(8192),
    "silu_mul in pieces": silu_mul(64),
    "rotary": rotary_embedding,
    "store_kv float min/max": store(False, MIN_MAX),
    "store_kv int8 mean/std": store(True, MEAN_STD),
    "paged_attention decode": paged_attention(DECODES),
    "paged_attention decode int8": paged_attention(DECODES, int8=True, dim=96),
    "paged_attention decode windowed": paged_attention(DECODES, sliding_window=70),
    "paged_attention prefill": paged_attention(CHUNKS),
    "paged_attention prefill int8": paged_attention(CHUNKS, int8=True, dim=80),
    "paged_attention prefill windowed": paged_attention(CHUNKS, sliding_window=30, group=3),
    "paged_attention both": paged_attention(DECODES[:4] + CHUNKS, softcap=2.0),
    "sparse_attention by keys": sparse(KEYS, True),
    "sparse_attention by min/max": sparse(MIN_MAX, False),
    "sparse_attention by mean/std": sparse(MEAN_STD, True),
    "sparse_prompt": sparse_prompts(),
    "sparse_prompt int8": sparse_prompts(int8=True, dim=80),
    "sample": sample,
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_is_the_same_in_any_batch(kernel, device, monkeypatch):
    rows = KERNELS[kernel](device, monkeypatch)
    every = list(range(rows.count))
    whole = rows.run(every)
    batches = [every[::-1], every[rows.count // 3 :]]
    batches += [every[3:20], every[40:70], every[70:130]] if rows.count > 130 else []
    batches += [[row] for row in sorted({0, rows.count // 2, rows.count - 1})]
    for batch in batches:
        for row, found in zip(batch, rows.run(batch), strict=True):
            for mine, expected in zip(found, whole[row], strict=True):
                assert same_bits(mine, expected), f"row {row} among {batch}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaN equals itself here: what is not written must stay as it is, too."""
    return a.dtype is b.dtype and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


def test_no_kernel_is_left_out():
    assert {name.split()[0] for name in KERNELS} == set(kernel_modules())
