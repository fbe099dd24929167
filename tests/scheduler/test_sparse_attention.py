"""Sparse attention through the engine: what it decides, what it counts, and that it is told apart from dense."""

from typing import Any

import pytest

from penstock import Engine, EngineConfig, SamplingParams
from penstock.config import SparseAttention
from penstock.errors import ConfigError, InvalidRequestError, ModelLoadError

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


PROMPT_SPARSELY = SparseAttention(mass=1.0, prompt_mass=0.5, min_context=256)


def test_a_sparse_prompt_is_the_same_in_any_chunks_and_company(tiny_llama):
    ends = [639, 640, 641, 700, 40, 200]
    prompts = [PROMPTS[0][number : number + end] for number, end in enumerate(ends)]
    prompts = [(prompt * 2)[:end] for prompt, end in zip(prompts, ends, strict=True)]
    found = []
    for budget in (69, 128, 200, 512, 4096):
        for together in (True, False):
            if not together and budget not in (69, 4096):
                continue
            engine = engine_of(
                tiny_llama,
                PROMPT_SPARSELY,
                quantize="w8a8",
                max_num_batched_tokens=budget,
                max_num_seqs=6,
                prefix_caching=False,
            )
            found.append(logprobs(engine, prompts) if together else [])
            for prompt in [] if together else prompts:
                found[-1] += logprobs(engine, [prompt])
            assert engine.stats.sparse.prompt_blocks == 2 * 2 * (6 + 6 + 7 + 7)
    assert all(other == found[0] for other in found)
    dense = logprobs(engine_of(tiny_llama, None, quantize="w8a8"), prompts)
    assert [one == other for one, other in zip(dense, found[0], strict=True)] == [False] * 4 + [True] * 2


def logprobs(engine: Engine, prompts: list[list[int]]) -> list[list[float]]:
    """Of four greedy tokens after each prompt, to the last bit."""
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=0)
        engine.add_request(str(number), prompt, params)
    found: list[list[float]] = [[] for _ in prompts]
    while engine.has_work():
        for delta in engine.step():
            assert delta.logprobs is not None
            found[int(delta.request_id)] += [one.logprob for one in delta.logprobs]
        engine.check()
    return found


def test_prompts_and_decodes_may_both_be_sparse(tiny_llama):
    engine = engine_of(tiny_llama, SparseAttention(mass=0.5, prompt_mass=0.5, min_context=512))
    tokens(engine, PROMPTS)
    stats = engine.stats.sparse
    assert stats.rows == 2 * 2 * 11
    assert stats.prompt_blocks == 2 * 2 * (3 + 2)
    assert 0 < stats.prompt_kept_tokens < stats.prompt_context_tokens
    assert 0.5 * stats.prompt_blocks <= stats.prompt_estimated_mass <= stats.prompt_blocks * 1.0001


def test_a_request_may_have_a_sparse_prompt_of_its_own(tiny_llama):
    engine = engine_of(tiny_llama, SparseAttention(mass=1.0), quantize="w8a8")
    dense = logprobs(engine, PROMPTS)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, sparse_attention=PROMPT_SPARSELY)
    engine.add_request("sparse", PROMPTS[0], params)
    while engine.has_work():
        engine.step()
    assert engine.stats.sparse.prompt_blocks == 2 * 2 * 7 and engine.stats.sparse.rows == 0
    assert logprobs(engine, PROMPTS) == dense, "its blocks are no dense prefix"
    everything = SparseAttention(mass=1.0, prompt_mass=1.0, min_context=1)
    assert logprobs(engine_of(tiny_llama, everything, quantize="w8a8"), PROMPTS) == dense


def test_prefix_hits_of_sparse_prompts_end_where_blocks_do(tiny_llama):
    settings: dict[str, Any] = {"quantize": "w8a8"}
    fresh = {}
    first, longer = PROMPTS[0][:610], [*PROMPTS[0][:610], *range(9, 50)]
    for prompt in (first, longer, first[:400]):
        fresh[len(prompt)] = logprobs(engine_of(tiny_llama, PROMPT_SPARSELY, **settings), [prompt])
    engine = engine_of(tiny_llama, PROMPT_SPARSELY, **settings)
    # Blocks of 32 tokens: of 610, 19 are full, the last of which is half a block of queries, and not found again.
    for prompt, shared in ((first, 0), (first, 576), (longer, 576), (first[:400], 384), (longer, 640)):
        hits = engine.stats.prefix_hits
        assert logprobs(engine, [prompt]) == fresh[len(prompt)]
        assert engine.stats.prefix_hits - hits == shared


def test_sparse_prompts_are_told_apart_by_their_settings(tiny_llama):
    engine = engine_of(tiny_llama, SparseAttention(mass=1.0))
    asked = [
        SparseAttention(mass=1.0, prompt_mass=mass, min_context=least)
        for mass, least in ((0.5, 256), (0.6, 256), (0.5, 320))
    ]
    for sparse, shared in ((None, 0), (asked[0], 256), (asked[1], 256), (asked[2], 320), (asked[0], 576)):
        hits = engine.stats.prefix_hits
        tokens(engine, [PROMPTS[0][:610]], sparse_attention=sparse, max_tokens=1)
        assert engine.stats.prefix_hits - hits == shared
    prompts = [None, 0.5, 0.6]
    fingerprints = {
        engine_of(tiny_llama, SparseAttention(prompt_mass=mass)).info.fingerprint for mass in prompts
    }
    assert len(fingerprints) == 3


def test_steps_too_small_for_a_block_are_refused(tiny_llama):
    says = (
        "max_num_batched_tokens is 70 and max_num_seqs 8; sparse prompts .* must hold at least 71: raise it"
    )
    with pytest.raises(ConfigError, match=says):
        engine_of(tiny_llama, PROMPT_SPARSELY, max_num_batched_tokens=70, max_num_seqs=8)
    engine = engine_of(tiny_llama, SparseAttention(), max_num_batched_tokens=70, max_num_seqs=8)
    with pytest.raises(InvalidRequestError, match=says):
        tokens(engine, PROMPTS, sparse_attention=PROMPT_SPARSELY)


def test_sparse_prompts_progress_beside_decodes_and_preemption(tiny_llama):
    """The least budget, and a pool that makes everyone wait for everyone."""
    engine = Engine(
        EngineConfig(
            model=str(tiny_llama),
            max_model_len=704,
            kv_cache_tokens=1024,
            sparse_attention=PROMPT_SPARSELY,
            max_num_batched_tokens=67,
            max_num_seqs=4,
        )
    )
    prompts = [PROMPTS[0][:320], PROMPTS[2][:300], PROMPTS[0][5:335], PROMPTS[1][:9], PROMPTS[0][:257]]
    found = tokens(engine, prompts, max_tokens=60)
    assert [len(one) for one in found] == [60] * 5
    assert engine.stats.preemptions > 0
