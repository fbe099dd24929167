"""Sparse attention through the engine: what it decides, what it counts, and that it is told apart from dense."""

from typing import Any

import pytest

from penstock import Engine, EngineConfig, SamplingParams
from penstock.config import SparseAttention
from penstock.errors import InvalidRequestError, ModelLoadError

PROMPTS = [[(7 * i + j) % 300 + 5 for i in range(length)] for j, length in enumerate((700, 40, 610))]


def engine_of(model, sparse: SparseAttention | None, **settings) -> Engine:
    return Engine(
        EngineConfig(
            model=str(model), max_model_len=1024, kv_cache_tokens=4096, sparse_attention=sparse, **settings
        )
    )


def tokens(engine: Engine, prompts: list[list[int]], **asked: Any) -> list[list[int]]:
    params = SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True, **asked})
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    found: list[list[int]] = [[] for _ in prompts]
    while engine.has_work():
        for delta in engine.step():
            found[int(delta.request_id)] += delta.token_ids
        engine.check()
    return found


def test_nearly_all_of_the_mass_is_computed_densely(tiny_llama):
    dense = engine_of(tiny_llama, None)
    sparse = engine_of(tiny_llama, SparseAttention(mass=0.999999, min_context=512))
    assert tokens(sparse, PROMPTS) == tokens(dense, PROMPTS)
    assert sparse.stats.sparse.fallbacks == sparse.stats.sparse.rows > 0
    assert dense.stats.sparse.rows == 0


def test_decodes_of_long_contexts_are_counted(tiny_llama):
    engine = engine_of(tiny_llama, SparseAttention(mass=0.5, min_context=512))
    tokens(engine, PROMPTS)
    stats = engine.stats.sparse
    # Two long prompts, two layers; the first of twelve tokens comes from the prompt itself.
    assert stats.rows == 2 * 2 * 11
    assert 0 < stats.kept_tokens < stats.context_tokens
    assert 0.5 * stats.rows <= stats.estimated_mass <= stats.rows * 1.0001
    assert stats.sampled_rows == 1 and 0.45 < stats.sampled_mass <= 1.0001


def test_a_sequence_is_decoded_alike_alone_and_in_company(tiny_llama):
    sparse = SparseAttention(mass=0.5, min_context=512)
    together = tokens(engine_of(tiny_llama, sparse, quantize="w8a8"), PROMPTS)
    for prompt, expected in zip(PROMPTS, together, strict=True):
        assert tokens(engine_of(tiny_llama, sparse, quantize="w8a8"), [prompt]) == [expected]


def test_a_request_may_have_its_own(tiny_llama):
    ask = SparseAttention(mass=0.5, min_context=512)
    engine = engine_of(tiny_llama, SparseAttention(mass=1.0))
    dense = tokens(engine, PROMPTS)
    assert engine.stats.sparse.rows == 0, "all of the mass is dense attention"
    own = tokens(engine, PROMPTS, sparse_attention=ask)
    assert own == tokens(engine_of(tiny_llama, ask), PROMPTS) != dense
    assert engine.stats.sparse.rows > 0
    assert tokens(engine_of(tiny_llama, ask), PROMPTS, sparse_attention=False) == dense
    with pytest.raises(InvalidRequestError, match="estimate is 'min_max'; this engine estimates from 'keys'"):
        tokens(engine, PROMPTS, sparse_attention=SparseAttention(estimate="min_max"))
    with pytest.raises(InvalidRequestError, match=r"start it with sparse_attention = {mass = 1.0}"):
        tokens(engine_of(tiny_llama, None), PROMPTS, sparse_attention=ask)


def test_what_was_decoded_sparsely_is_no_dense_prefix(tiny_llama):
    """A conversation goes on: its earlier answer was decoded sparsely, and a fresh engine gives the same next answer."""
    ask = SparseAttention(mass=0.5, min_context=512)
    engine = engine_of(tiny_llama, SparseAttention(mass=1.0))
    first = PROMPTS[0][:640]
    (answer,) = tokens(engine, [first], sparse_attention=ask, max_tokens=70)
    longer = [*first, *answer, 9]
    # First only the prompt's blocks are of use, not the answer's; then what the dense one computed.
    for own, shared in ((None, 640), (ask, 704)):
        fresh = tokens(engine_of(tiny_llama, SparseAttention(mass=1.0)), [longer], sparse_attention=own)
        hits = engine.stats.prefix_hits
        assert tokens(engine, [longer], sparse_attention=own) == fresh
        assert engine.stats.prefix_hits - hits == shared


def test_cached_completions_are_told_apart(tiny_llama):
    settings = [
        None,
        SparseAttention(mass=0.5),
        SparseAttention(mass=0.6),
        SparseAttention(mass=0.5, min_context=9),
    ]
    assert len({engine_of(tiny_llama, sparse).info.fingerprint for sparse in settings}) == 4


def test_summaries_are_for_gpus(tiny_llama):
    with pytest.raises(ModelLoadError, match="estimate is 'min_max', which is for GPUs; on a CPU leave it"):
        engine_of(tiny_llama, SparseAttention(estimate="min_max"))


def test_blocks_without_whole_granules_are_refused(tiny_llama):
    with pytest.raises(ModelLoadError, match="block_size is 8; sparse attention keeps whole granules of 16"):
        engine_of(tiny_llama, SparseAttention(), block_size=8)
