"""Every kernel over pages at every size of heads, group and kind of page, against float64: relative errors below 1e-5.

What is compared are float32 queries; half precisions have their own tests, and errors, beside each kernel.
"""

import pytest
import torch
from paged_pool import PagedPool

from penstock.kernels.gpu.paged_attention import paged_attention
from penstock.kernels.gpu.sparse_attention import KEYS, MEAN_STD, MIN_MAX, sparse_attention
from penstock.kernels.reference import sparse_attention as sparse_reference
from penstock.kernels.reference.paged_attention import paged_attention_reference
from penstock.kernels.reference.store_kv import summary_reference

TOLERANCE = 1e-5
HEADS = [64, 80, 96, 128, 256]
GROUPS = [1, 4, 8]
INT8 = pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
# One token alone, decodes and chunks on either side of the end of a page.
SEQUENCES = [(0, 1), (63, 1), (64, 1), (0, 2), (62, 4)]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert not found.isnan().any()
    return float(
        (
            (found.double().cpu() - expected).abs() / expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        ).max()
    )


def expected_of(pool: PagedPool, row: int, **options: object) -> torch.Tensor:
    """[T, Hq, D]"""
    keys, values = pool.stored(row)
    first, tokens = pool.sequences[row]
    slots = [list(range(position + 1)) for position in range(first, first + tokens)]
    query = pool.queries[row].transpose(0, 1).cpu()
    return paged_attention_reference(query, keys, values, slots, scaling=0.1, **options)


@INT8
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("head_dim", HEADS)
def test_paged_attention(head_dim, group, int8, device):
    pool = PagedPool(SEQUENCES, device, dim=head_dim, group=group, int8=int8).fill()
    rows = range(len(SEQUENCES))
    found = paged_attention(
        torch.cat(pool.queries), pool.pages, pool.scales, pool.batch(list(rows)), scaling=0.1
    )
    wanted = torch.cat([expected_of(pool, row) for row in rows])
    assert error(found.out, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("head_dim", "group", "int8"), [(80, 8, True), (96, 1, False), (256, 4, True)], ids=str
)
def test_windows_softcap_and_sinks_at_other_sizes(head_dim, group, int8, device):
    pool = PagedPool(SEQUENCES, device, dim=head_dim, group=group, int8=int8).fill()
    options = {"sliding_window": 17, "softcap": 1.5, "sinks": torch.randn(2 * group, device=device)}
    batch = pool.batch(list(range(len(SEQUENCES))))
    found = paged_attention(torch.cat(pool.queries), pool.pages, pool.scales, batch, scaling=0.1, **options)
    wanted = torch.cat([expected_of(pool, row, **options) for row in range(len(SEQUENCES))])
    assert error(found.out, wanted) < TOLERANCE


@INT8
@pytest.mark.parametrize("formula", [MIN_MAX, MEAN_STD], ids=["min_max", "mean_std"])
@pytest.mark.parametrize("head_dim", HEADS)
def test_store_kv(head_dim, formula, int8, device):
    """Across the end of a page; INT8 errs by half a step of a token's scale at most."""
    pool = PagedPool([(0, 70)], device, dim=head_dim, int8=int8, formula=formula).fill()
    keys, values = pool.stored(0)
    for found, given in ((keys, pool.kv[0][0]), (values, pool.kv[0][1])):
        given = given.transpose(0, 1).double().cpu()
        steps = given.abs().amax(-1, keepdim=True) / 127 if int8 else torch.zeros(())
        assert ((found - given).abs() <= steps * 0.5001).all()
    table = pool.tables[0]
    for granule in range(5):
        own = keys[:, granule * 16 : granule * 16 + 16].transpose(0, 1)
        wanted = summary_reference(own, mean_std=formula == MEAN_STD)
        found = pool.summaries[table[granule // 4], :, granule % 4]
        assert torch.allclose(found.double().cpu(), wanted, rtol=1e-5, atol=1e-5)
    assert pool.summaries[table[1], :, 1:].isnan().all(), "nobody's granules stay as they are"


@pytest.mark.parametrize(
    ("head_dim", "group", "int8", "formula"),
    [
        (64, 8, True, MEAN_STD),
        (80, 1, False, MIN_MAX),
        (80, 4, True, MEAN_STD),
        (96, 8, False, KEYS),
        (96, 1, True, MIN_MAX),
        (128, 4, True, KEYS),
        (128, 8, False, MEAN_STD),
        (256, 1, True, KEYS),
        (256, 4, False, MIN_MAX),
    ],
    ids=str,
)
def test_sparse_attention(head_dim, group, int8, formula, device):
    """One token, a page with its end, and granules to leave out; kept is what the reference keeps but for ties."""
    sequences = [(0, 1), (64, 1), (299, 1)]
    stored = None if formula == KEYS else formula
    pool = PagedPool(
        sequences, device, dim=head_dim, group=group, int8=int8, formula=stored, sparse=True
    ).fill()
    query = torch.cat(pool.queries)
    out = torch.empty_like(query).fill_(float("nan"))
    batch = pool.batch([0, 1, 2])
    chosen = sparse_attention(
        query, pool.pages, pool.scales, pool.summaries, batch, out, scaling=0.3, formula=formula
    )
    estimate = {
        KEYS: sparse_reference.exact_log_mass,
        MIN_MAX: sparse_reference.min_max_log_mass,
        MEAN_STD: sparse_reference.mean_std_log_mass,
    }[formula]
    for row, (first, _) in enumerate(sequences):
        keys, values = pool.stored(row)
        own = query[row].double().cpu()
        log_mass = estimate(own, keys, 0.3)
        mine = torch.zeros(2, log_mass.shape[2], dtype=torch.bool)
        for head, length in enumerate(chosen.lengths[row].tolist()):
            mine[head, chosen.granules[row, head, : length // 16].long().cpu()] = True
        assert (mine != sparse_reference.select(log_mass, pool.mass, first + 1)).sum() <= 2
        wanted = sparse_reference.sparse_attention_reference(own, keys, values, 0.3, mine)
        assert error(out[row], wanted) < TOLERANCE
    assert int(chosen.lengths[2].max()) < 304, "something was left out"
