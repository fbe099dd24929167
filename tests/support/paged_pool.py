"""Sequences in shuffled pages that are poisoned wherever nothing is stored, for tests of the GPU's kernels."""

import torch
from torch import Tensor

from penstock.kernels.gpu.paged_batch import PagedBatch
from penstock.kernels.gpu.store_kv import MIN_MAX, store_kv
from penstock.kernels.span import Span


class PagedPool:
    """Two KV heads of sequences, (tokens stored before, new tokens) each, with the queries of their new tokens."""

    def __init__(
        self, sequences, device, *, dim=64, int8=False, formula=None, group=2, sparse=False, prompts=False
    ) -> None:
        needed = [-(-sum(sequence) // 64) for sequence in sequences]
        shape = (sum(needed) + 1, 2, 2, 64, dim)
        self.sequences, self.device, self.formula = sequences, device, formula
        self.pages = (
            torch.full(shape, 77, dtype=torch.int8, device=device)
            if int8
            else torch.full(shape, float("nan"), device=device)
        )
        self.scales = torch.full(shape[:-1], float("nan"), device=device) if int8 else None
        self.summaries = None
        if formula is not None:
            self.summaries = torch.full((shape[0], 2, 4, 2, dim), float("nan"), device=device)
        self.tables = [part.tolist() for part in (torch.randperm(sum(needed)) + 1).split(needed)]
        self.kv = [torch.randn(2, sum(own), 2, dim, device=device) for own in sequences]
        self.queries = [torch.randn(own[1], 2 * group, dim, device=device) for own in sequences]
        self.mass, self.prompts = 0.8 if sparse else None, prompts

    def order(self, some: list[int]) -> list[int]:
        """As a step's batch has them: those of one token first."""
        return sorted(some, key=lambda row: self.sequences[row][1] > 1)

    def batch(self, some: list[int]) -> PagedBatch:
        spans = [Span(self.tables[row], *self.sequences[row], self.mass, self.prompts) for row in some]
        return PagedBatch.build(spans, self.device)

    def store(self, spans: list[Span], rows: list[Tensor]) -> None:
        key, value = torch.cat(rows, dim=1)
        formula = MIN_MAX if self.formula is None else self.formula
        batch = PagedBatch.build(spans, self.device)
        store_kv(key, value, self.pages, self.scales, self.summaries, batch, formula=formula)

    def fill(self) -> "PagedPool":
        for table, own, kv in zip(self.tables, self.sequences, self.kv, strict=True):
            self.store([Span(table, 0, sum(own))], [kv])
        return self

    def in_turn(self, some: list[int], result: list[Tensor]) -> list[list[Tensor]]:
        """`result`, by rows of all tokens in the batch's order, as sequences in the order of `some`."""
        order = self.order(some)
        counts = [self.sequences[row][1] for row in order]
        parts = dict(zip(order, zip(*(x.split(counts) for x in result), strict=True), strict=True))
        return [list(parts[row]) for row in some]

    def stored(self, row: int) -> tuple[Tensor, Tensor]:
        """The keys and values of a sequence as its pages hold them, [Hkv, n, D] float64."""
        pages = self.pages.double()
        if self.scales is not None:
            pages = pages * self.scales.double()[..., None]
        own = pages[self.tables[row]].permute(2, 1, 0, 3, 4).flatten(2, 3)
        return own[0, :, : sum(self.sequences[row])].cpu(), own[1, :, : sum(self.sequences[row])].cpu()
