"""Guessing tokens and verifying them: what is guessed, how many, and that nothing but the time depends on it."""

import random
from typing import Any

import pytest
import torch
from steady_clock import SteadyClock

from penstock import Engine, EngineConfig, InvalidRequestError, SamplingParams
from penstock.config import SparseAttention
from penstock.scheduler.draft_length import LENGTHS, MARGIN, draft_length, rows_cost
from penstock.scheduler.drafters import CompletionDraft, PromptLookup
from penstock.scheduler.outputs import Delta
from penstock.scheduler.speculation import Guesser, Speculation, Speculator
from penstock.scheduler.step_times import StepTimes
from penstock.scheduler.track_record import expected_tokens

GPU = "cuda" if torch.cuda.is_available() else "interpreter"
# Tokens in parallel for nothing, as on a machine that is bound by memory; and none at all.
# BOUND: a step of 64 takes as long as five of one.
FREE, BUSY, BOUND = StepTimes(), StepTimes(), StepTimes()
for size in (1, 2, 4, 8, 16, 64, 256):
    FREE.record(size, 0.010 + size * 1e-6)
    BUSY.record(size, 0.010 * size)
    BOUND.record(size, 0.010 * (1 + size / 16))


def test_prompt_lookup_goes_on_as_after_the_last_occurrence():
    drafter = PromptLookup()
    assert drafter.propose([1, 2, 3, 9, 8, 7, 1, 2, 3, 5, 6, 4, 1, 2, 3], 2) == [5, 6]
    assert drafter.propose([1, 2, 3, 9, 8, 7, 1, 2, 3, 5, 6, 4, 1, 2, 3, 5, 6, 7], 2) == []


def test_a_repetition_is_taken_to_go_on():
    assert PromptLookup().propose([4, 1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_tokens_are_not_found_across_their_bytes():
    # 0x00010000 shifted by two bytes reads as 1: only whole tokens may agree.
    assert PromptLookup().propose([65536, 65536, 65536, 0, 7, 1, 1, 1], 3) == []
    assert PromptLookup().propose([1, 2], 3) == [] and PromptLookup().propose([], 3) == []


def test_a_completion_is_followed_and_found_again_after_a_difference():
    prompt, draft = [1, 2], [10, 11, 12, 13, 14, 15, 16]
    drafter = CompletionDraft(draft, len(prompt))
    assert drafter.propose(prompt, 3) == [10, 11, 12]
    assert drafter.propose([*prompt, 10, 11], 99) == [12, 13, 14, 15, 16]
    assert drafter.propose([*prompt, 10, 11, 50], 9) == []
    assert drafter.propose([*prompt, 10, 11, 50, 12, 13], 9) == []
    assert drafter.propose([*prompt, 10, 11, 50, 12, 13, 14], 9) == [15, 16]
    assert drafter.propose([*prompt, 10, 11, 50, 12, 13, 14, 15, 16, 17], 9) == []


def test_a_difference_is_overcome_forwards_first():
    drafter = CompletionDraft([1, 2, 3, 7, 9, 1, 2, 3, 8, 1, 2, 3, 6], 0)
    assert drafter.propose([1, 2, 3, 7], 1) == [9]
    assert drafter.propose([1, 2, 3, 7, 0, 1, 2, 3], 1) == [8]


def test_a_completion_that_was_right_for_long_loses_its_credit_at_once():
    """All of it by a draft that was right in part as well: whether its place is found again is another question."""

    def length_after(*verified: tuple[int, int]) -> int:
        record = Guesser(CompletionDraft([1], 0)).record
        for guessed, right in ((64, 64), *verified):
            record.learn(guessed, right)
        return draft_length(BOUND, record.acceptance, 64, 1, 1)

    assert length_after() == 64
    assert 0 < length_after((64, 16)) <= 12 and length_after((64, 16), (8, 0)) <= 2
    assert 0 < length_after((64, 0)) <= 12 and length_after((64, 0), (8, 0)) <= 2
    # Found again, it is believed more with each draft.
    assert length_after((64, 16), (8, 8)) < length_after((64, 16), (8, 8), (16, 16), (32, 32))


def test_steps_of_unknown_size_are_taken_to_lie_between_their_neighbours():
    times = StepTimes()
    assert times.seconds(8) is None
    times.record(1, 0.010)
    times.record(100, 0.109)
    assert times.seconds(1) == pytest.approx(0.010) and times.seconds(100) == pytest.approx(0.109)
    assert times.seconds(50) == pytest.approx(0.059)
    assert times.seconds(200) == pytest.approx(0.209)


def test_what_a_key_costs_is_learnt_from_steps_of_one_size():
    """Beside a prompt that grows: the same tokens, more keys at each step, and noise."""
    times, rng = StepTimes(), random.Random(0)

    def took(keys: int) -> float:
        return 0.010 + 5e-7 * keys + rng.uniform(-0.0005, 0.0005)

    for _ in range(50):
        times.record(8, took(800), 800)
    assert times.seconds(8) == times.seconds(8, 800) == pytest.approx(0.0104, rel=0.05)
    for step in range(300):
        keys = 800 + 16 * (16 * step)
        times.record(24, took(keys), keys)
    assert times.seconds_per_key == pytest.approx(5e-7, rel=0.2)
    # Of a size that had few keys only, too.
    assert times.seconds(8, 60_800) == pytest.approx(0.0404, rel=0.2)
    assert times.seconds(24, 0) == pytest.approx(0.010, rel=0.4)


def test_noise_makes_no_keys_expensive():
    times, rng = StepTimes(), random.Random(1)
    for step in range(2000):
        times.record(8, 0.001 + rng.uniform(-0.0003, 0.0003), 8 * (100 + step))
    many = times.seconds(8, 100_000)
    assert many is not None and many < 0.002


def test_a_step_that_was_interrupted_is_not_believed():
    times = StepTimes()
    for _ in range(20):
        times.record(4, 0.010)
    times.record(4, 30.0)
    before = times.seconds(4)
    assert before is not None and before < 0.02
    for _ in range(40):
        times.record(4, 0.030)  # a change that lasts is
    assert times.seconds(4) == pytest.approx(0.030, rel=0.02)


def test_more_tokens_never_seem_faster():
    times = StepTimes()
    for size, seconds in ((1, 0.03), (8, 0.01), (64, 0.02), (100, 0.05)):
        times.record(size, seconds)
    found = [times.seconds(size) or 0 for size in range(1, 300)]
    assert found == sorted(found)


def test_drafts_are_as_long_as_they_pay():
    assert draft_length(FREE, 0.99, 128, 1, 1) == 128
    assert draft_length(FREE, 0.99, 20, 1, 1) == 16
    assert draft_length(BUSY, 0.9, 128, 1, 1) == 0
    lengths = [draft_length(StepTimes(), chance / 10, 128, 1, 1) for chance in range(1, 10)]
    assert lengths == sorted(lengths) and lengths[0] <= 2 < lengths[-1]
    # Where many share the step, a guess has to make up for all of them.
    assert draft_length(StepTimes(), 0.5, 128, 64, 64) == 0
    assert draft_length(FREE, 0.9, 0, 1, 1) == 0


def test_a_guess_beside_a_prompt_saves_no_more_than_a_step_of_decodes():
    """A row of 6 ms beside a prompt of 128 tokens costs a fifth of a decode of 30 ms, no hundredth of that step."""
    times = StepTimes()
    for size in (1, 8, 128, 192, 256):
        times.record(size, 0.024 + 0.006 * size)
    assert draft_length(times, 0.9, 128, 128, 1) == draft_length(times, 0.9, 128, 1, 1) <= 16


def test_a_size_that_was_measured_in_a_bad_moment_hides_no_longer_draft():
    """Nobody would choose it again, so nothing would ever correct it."""
    times = StepTimes()
    for size, seconds in ((1, 0.00019), (2, 0.00039), (13, 0.00048), (29, 0.0009)):
        times.record(size, seconds)
    for acceptance in (0.9, 0.99):
        length = draft_length(times, acceptance, 128, 1, 1)
        assert length >= 12

        def gain(tried: int, acceptance: float = acceptance) -> float:
            return expected_tokens(acceptance, tried) - MARGIN * rows_cost(times, 1, tried, 1)

        assert gain(length) == max(gain(tried) for tried in LENGTHS) > 0


def test_a_drafter_that_errs_is_heard_less_and_may_come_back():
    speculator = Speculator(StepTimes())
    guesser = Guesser(PromptLookup())
    speculation = Speculation([guesser])
    loop = [1, 2, 3, 4]

    def propose(tokens: list[int]) -> int:
        speculator.propose(speculation, tokens, limit=128, num_tokens=1, num_seqs=1)
        return len(speculation.draft)

    assert propose(loop * 2 + [1, 2, 3]) > 0
    while propose(loop * 2 + [1, 2, 3]):
        speculator.settle(speculation, 0, 1)
    assert guesser.acceptance < 0.2 and speculator.stats["ngram"].accepted == 0
    # It goes on guessing for itself, and is seen to be right again.
    tokens = loop * 2
    while not propose(tokens):
        tokens.append(loop[len(tokens) % 4])
        assert len(tokens) < 160
    assert guesser.acceptance > 0.05


def generate(
    engine: Engine, prompts: list[list[int]], params: SamplingParams, **kwargs: Any
) -> list[list[Delta]]:
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params, **kwargs)
    found: list[list[Delta]] = [[] for _ in prompts]
    while engine.has_work():
        for delta in engine.step():
            found[int(delta.request_id)].append(delta)
        engine.check()
    return found


def logprobs_of(deltas: list[Delta]) -> list[Any]:
    return [logprob for delta in deltas for logprob in delta.logprobs or []]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


PROMPTS = [[(5 * i + j) % 300 + 5 for i in range(length)] for j, length in enumerate((3, 60, 33))]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, drafters=())


@pytest.fixture(scope="module")
def engine(tiny_llama) -> Engine:
    engine = Engine(
        EngineConfig(model=str(tiny_llama), quantize="w8a8", max_model_len=512, kv_cache_tokens=2048)
    )
    engine.clock = SteadyClock()  # what steps have taken decides how much is guessed
    return engine


def test_a_right_draft_is_accepted_whole_in_a_few_steps(engine):
    (alone,) = generate(engine, PROMPTS[1:2], GREEDY)
    answer = tokens_of(alone)
    before = engine.stats
    steps, drafted = before.steps, dict(before.drafters)
    (found,) = generate(engine, PROMPTS[1:2], GREEDY, draft_token_ids=answer)
    assert tokens_of(found) == answer and len(alone) == 40
    stats = engine.stats
    assert stats.steps - steps <= 6
    assert stats.drafters["draft"].accepted >= 34
    assert stats.drafters["draft"].drafted == stats.drafters["draft"].accepted
    assert "draft" not in drafted
    assert stats.generation_tokens - before.generation_tokens == 40


def test_a_draft_that_stops_early_stops_the_answer_where_it_always_stops(engine):
    (whole,) = generate(engine, PROMPTS[:1], GREEDY)
    answer = tokens_of(whole)
    stop = answer[17]
    at = answer.index(stop)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop_token_ids=(stop,))
    (found,) = generate(engine, PROMPTS[:1], params, draft_token_ids=answer)
    assert tokens_of(found) == answer[: at + 1]
    assert found[-1].finish_reason == "stop" and found[-1].stop_token_id == stop
    for most in (1, 2, 5):
        params = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True)
        (found,) = generate(engine, PROMPTS[:1], params, draft_token_ids=answer)
        assert tokens_of(found) == answer[:most] and found[-1].finish_reason == "length"
    assert engine.stats.kv_blocks_used == 0


def test_a_draft_is_checked_like_a_prompt(engine):
    for wrong in ([1, 999_999], [-1]):
        with pytest.raises(InvalidRequestError, match="draft_token_ids holds token id"):
            engine.add_request("x", [5], GREEDY, draft_token_ids=wrong)
    assert not engine.has_work()
    with pytest.raises(InvalidRequestError, match="drafters"):
        SamplingParams(drafters=("parrot",))  # type: ignore[arg-type]


def test_several_completions_of_one_draft(engine):
    params = SamplingParams(temperature=0.8, seed=3, n=3, max_tokens=20, ignore_eos=True, drafters=())
    engine.add_request("n", PROMPTS[0], params)
    alone: dict[int, list[int]] = {0: [], 1: [], 2: []}
    drafted: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while engine.has_work():
        for delta in engine.step():
            alone[delta.index] += delta.token_ids
    engine.add_request("n", PROMPTS[0], params, draft_token_ids=alone[1])
    while engine.has_work():
        for delta in engine.step():
            drafted[delta.index] += delta.token_ids
    assert drafted == alone


def force_lengths(engine: Engine, seed: int) -> None:
    """Draft whatever the policy says: any length, at any time."""
    rng = random.Random(seed)
    engine.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(
        limit, rng.choice([0, 1, 2, 5, *LENGTHS])
    )


def verified(engine: Engine, prompt: list[int], num_tokens: int) -> tuple[list[Delta], list[list[Delta]]]:
    """The answer without a draft, and those with a right and a half-right one."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, drafters=(), logprobs=1)
    (alone,) = generate(engine, [prompt], params)
    answer = tokens_of(alone)
    force_lengths(engine, 1)
    middle = num_tokens // 2
    drafts = (answer, [*answer[:middle], 7, *answer[middle + 1 :]])
    return alone, [generate(engine, [prompt], params, draft_token_ids=draft)[0] for draft in drafts]


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_sparse_decodes_are_verified_sparsely(tiny_llama, device):
    """Every row of a draft attends to its own selection of keys, as it would alone."""
    engine = Engine(
        EngineConfig(
            model=str(tiny_llama),
            quantize="w8a8",
            device=device,
            max_model_len=256,
            kv_cache_tokens=1024,
            sparse_attention=SparseAttention(mass=0.6, min_context=164),
        )
    )
    alone, found = verified(engine, [(7 * i) % 300 + 5 for i in range(160)], 9)
    for deltas in found:
        assert tokens_of(deltas) == tokens_of(alone)
    if device == "cpu":
        assert logprobs_of(found[0]) == logprobs_of(found[1]) == logprobs_of(alone)
    assert engine.stats.drafters["draft"].accepted > 3
    assert engine.stats.sparse.rows > 0


def test_drafts_on_the_gpus_kernels(tiny_llama):
    """Also where a page ends within a draft."""
    engine = Engine(
        EngineConfig(
            model=str(tiny_llama), quantize="w8a8", device=GPU, max_model_len=128, kv_cache_tokens=512
        )
    )
    alone, found = verified(engine, PROMPTS[1], 9)
    for deltas in found:
        assert tokens_of(deltas) == tokens_of(alone)
        assert logprobs_of(deltas) == logprobs_of(alone)
    assert engine.stats.drafters["draft"].accepted > 5
