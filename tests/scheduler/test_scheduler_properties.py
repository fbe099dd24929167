"""Scheduler and block manager under random add, abort, step, drafts and preemption: eight invariants, always.

Both are pure bookkeeping, so the model is played by a function that names the next token (support/played_scheduler.py).
"""

import itertools

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from played_scheduler import Machine

from penstock.config import SparseAttention
from penstock.scheduler.block_manager import BlockManager
from penstock.scheduler.sequence import Status
from penstock.scheduler.step_times import StepTimes


class Parrot:
    """Guesses right, then wrong, then right, as the property test says."""

    name = "ngram"

    def __init__(self, rights: list[bool]) -> None:
        self._rights = rights

    def propose(self, token_ids: list[int], limit: int) -> list[int]:
        seq = list(token_ids)
        for right in self._rights[:limit]:
            true = (sum(seq) * 7 + len(seq)) % 3
            seq.append(true if right else (true + 1) % 3)
        return seq[len(token_ids) :]


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(1, 12),
        block_size=st.integers(1, 5),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 24),
        prefix_caching=st.booleans(),
        seconds=st.lists(st.tuples(st.integers(1, 24), st.floats(0.001, 0.1)), max_size=4),
        lengths=st.lists(st.integers(0, 5), min_size=1),
        draft_rights=st.none() | st.lists(st.booleans(), min_size=1, max_size=6),
        catches_up=st.lists(st.booleans(), min_size=1),
    )
    def start(self, seconds, lengths, catches_up, **sizes) -> None:
        times, decode_times, prompt_times = StepTimes(), StepTimes(), StepTimes()
        for number, (num_tokens, took) in enumerate(seconds):
            times.record(num_tokens, took)
            (decode_times, prompt_times)[number % 2].record(num_tokens, took)
        self.machine = Machine(**sizes, times=times, decode_times=decode_times, prompt_times=prompt_times)
        turns = itertools.cycle(lengths)
        self.machine.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(
            limit, next(turns)
        )
        planner = self.machine.speculator.planner
        if planner is not None:
            catch_ups = itertools.cycle(catches_up)
            planner.pays_to_catch_up = lambda candidate, num_seqs: next(catch_ups)
            planner.choose_lengths = lambda times, run_times, chances, tokens, seqs: [
                min(chance.limit, next(turns)) for chance in chances
            ]
        self.added = 0

    @rule(
        data=st.data(),
        n=st.integers(1, 3),
        tenant=st.sampled_from(["a", "b"]),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
        rights=st.none() | st.lists(st.booleans(), max_size=6),
    )
    def add(self, data, n: int, tenant: str, priority: int, rights: list[bool] | None) -> None:
        longest = self.machine.max_len
        # Few token values and few lengths, so that prompts share beginnings.
        prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=longest), label="prompt")
        max_tokens = data.draw(st.integers(1, max(1, longest - len(prompt) + 1)), label="max_tokens")
        for _ in range(n):
            drafter = None if rights is None else Parrot(rights)
            self.machine.add(prompt, max_tokens, tenant, priority=priority, drafter=drafter)
            self.added += 1

    @precondition(lambda self: self.machine.live)
    @rule(data=st.data())
    def abort(self, data) -> None:
        self.machine.abort(data.draw(st.sampled_from(self.machine.live), label="aborted"))

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.machine.step()
            self.machine.check()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "machine"):
            self.machine.check()

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.machine.drain()
            self.machine.check_baseline()
            assert sum(self.machine.ended.values()) == self.added, "a request got lost"


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=200, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    budget=st.integers(1, 16),
    max_num_seqs=st.integers(1, 8),
    block_size=st.sampled_from([1, 2, 4]),
)
@example(lengths=[12] * 8, budget=16, max_num_seqs=8, block_size=4)
@settings(max_examples=60, deadline=None)
def test_a_pool_of_exactly_one_sequence_serves_everyone(lengths, budget, max_num_seqs, block_size):
    machine = Machine(-(-16 // block_size), block_size, max_num_seqs, budget)
    for number, length in enumerate(lengths):
        machine.add([number % 2] * length, 16 - length + 1)
    machine.drain()
    machine.check_baseline()
    assert len(machine.ended) == len(lengths)


@given(data=st.data(), budget=st.integers(1, 9), num_blocks=st.integers(4, 10))
@settings(max_examples=60, deadline=None)
def test_tokens_do_not_depend_on_the_schedule(data, budget, num_blocks):
    """What is generated is a function of the prompt alone, whatever is batched, preempted or shared."""
    prompts = data.draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=1, max_size=6))
    machine = Machine(num_blocks, 2, 4, budget)
    seqs = [machine.add(prompt, min(6, machine.max_len - len(prompt) + 1)) for prompt in prompts]
    machine.drain()
    for seq, prompt in zip(seqs, prompts, strict=True):
        alone = list(prompt)
        for _ in range(seq.max_tokens):
            alone.append((sum(alone) * 7 + len(alone)) % 3)
        assert seq.token_ids == alone


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    is_sparse=st.lists(st.booleans(), min_size=8, max_size=8),
    spare=st.integers(0, 100),
    max_num_seqs=st.integers(1, 8),
    block_size=st.sampled_from([16, 32, 64, 128]),
    min_context=st.sampled_from([1, 64, 100, 200]),
)
@settings(max_examples=60, deadline=None)
def test_blocks_of_sparse_prompts_are_never_cut_and_never_stuck(
    lengths, is_sparse, spare, max_num_seqs, block_size, min_context
):
    """The least room that a step must have, or more; pools that hold one long sequence."""
    machine = Machine(384 // block_size, block_size, max_num_seqs, 64 + max_num_seqs - 1 + spare)
    sparse = SparseAttention(prompt_mass=0.5, min_context=min_context)
    for length, its in zip(lengths, is_sparse, strict=False):
        # Prompts that share beginnings.
        machine.add([length % 2] * 70 + [1] * (length - 1), 10, sparse=sparse if its else None)
    machine.drain()
    machine.check_baseline()


def test_a_full_prompt_hit_still_computes_one_token():
    machine = Machine(8, 4, 4, 64)
    for _ in range(2):
        machine.add([1] * 8, 1)
        output = machine.step()
    assert output.scheduled[0].num_new_tokens == 4  # the last block again: its last token gives the logits
    assert machine.manager.prefix_hits == 4
    machine.add([1] * 9, 1)
    assert machine.step().scheduled[0].num_new_tokens == 1


def test_tenants_never_share_blocks():
    machine = Machine(16, 4, 4, 64)
    machine.add([1] * 12, 1, tenant="a")
    machine.step()
    machine.add([1] * 12, 1, tenant="b")
    assert machine.step().scheduled[0].num_new_tokens == 12
    machine.add([1] * 12, 1, tenant="a")
    assert machine.step().scheduled[0].num_new_tokens == 4


def test_completions_of_one_prompt_compute_it_once():
    machine = Machine(64, 4, 8, 256)
    for _ in range(4):
        machine.add([1, 2] * 20, 3)
    computed = 0
    while machine.scheduler.has_work():
        computed += sum(item.num_new_tokens for item in machine.step().scheduled)
        machine.check()
    # 40 prompt tokens once; each completion computes the prompt's last block anew and two outputs.
    assert computed <= 40 + 3 * 4 + 4 * 2


def test_a_hash_collision_does_not_give_anothers_kv(monkeypatch: pytest.MonkeyPatch):
    machine = Machine(8, 2, 4, 64)
    monkeypatch.setattr(
        BlockManager,
        "_hashes",
        lambda self, seq, count: [bytes([position]) * 16 for position in range(count)],
    )
    machine.add([1, 1, 1, 1, 1], 1)
    machine.step()
    machine.add([2, 2, 2, 2, 2], 1)
    assert machine.step().scheduled[0].num_new_tokens == 5
    machine.check()


def test_decodes_are_never_held_back_by_a_prefill():
    machine = Machine(64, 4, 8, 8)
    streams = [machine.add([number], 20) for number in range(3)]
    machine.step()
    machine.add([9] * 100, 1)
    for _ in range(10):
        output = machine.step()
        assert {id(item.seq) for item in output.scheduled} >= {id(seq) for seq in streams}
        machine.check()


def test_the_oldest_is_never_preempted():
    machine = Machine(4, 2, 4, 16)
    oldest = machine.add([1], 8)
    for number in range(3):
        machine.add([2 + number], 8)
    machine.step()
    while oldest in machine.live:
        assert oldest.status is Status.RUNNING
        before = oldest.num_tokens
        machine.step()
        machine.check()
        assert oldest.num_tokens == before + 1
    assert machine.scheduler.num_preemptions > 0
    machine.drain()
    machine.check_baseline()


def test_least_useful_cached_blocks_go_first():
    machine = Machine(4, 2, 4, 16)
    machine.add([1] * 5, 1)  # caches two blocks
    machine.step()
    machine.add([2] * 5, 1)  # takes the two free uncached ones and one cached: the chain's tail
    machine.step()
    machine.add([1] * 5, 1)
    output = machine.step()
    assert output.scheduled[0].num_new_tokens in (3, 5)
    machine.check()


@pytest.mark.slow
def test_many_more_random_schedules():
    run_state_machine_as_test(
        SchedulerMachine, settings=settings(TestSchedulerMachine.settings, max_examples=3000)
    )
