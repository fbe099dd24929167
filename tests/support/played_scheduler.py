"""A scheduler and a block manager whose model is played by a function that names the next token."""

import itertools
from dataclasses import dataclass, field

from penstock.config import SparseAttention
from penstock.scheduler.block_manager import BlockManager
from penstock.scheduler.draft_plan import DraftPlanner, DraftRows
from penstock.scheduler.drafters import Drafter
from penstock.scheduler.sampling_params import SamplingParams
from penstock.scheduler.scheduler import ScheduledSequence, Scheduler, SchedulerOutput
from penstock.scheduler.sequence import Sequence, Status
from penstock.scheduler.speculation import Guesser, ModelGuesser, Speculation, Speculator
from penstock.scheduler.step_times import StepTimes
from penstock.scheduler.tenant_shares import TenantShares
from penstock.scheduler.urgency import Urgency

PARAMS = SamplingParams()


def next_token(seq: Sequence) -> int:
    """Any pure function of the tokens so far; few values, so that outputs share prefixes too."""
    return (sum(seq.token_ids) * 7 + len(seq.token_ids)) % 3


@dataclass
class Machine:
    """A scheduler with a played runner that also remembers what every KV slot was computed from.

    `draft_rights`: a played draft model guesses right and wrong by turns; None for no draft model.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    budget: int
    prefix_caching: bool = True
    times: StepTimes = field(default_factory=StepTimes)
    decode_times: StepTimes | None = None
    prompt_times: StepTimes | None = None
    weights: dict[str, float] = field(default_factory=dict)
    trust_max_tokens: bool = False
    draft_rights: list[bool] | None = None
    live: list[Sequence] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.manager = BlockManager(self.num_blocks + 1, self.block_size, prefix_caching=self.prefix_caching)
        self.shares = TenantShares(self.weights)
        planner = None
        if self.draft_rights is not None:
            planner = DraftPlanner(
                self.times, StepTimes(), max_model_len=(self.max_len + 1) // 2, max_rows=self.budget
            )
        self.speculator = Speculator(self.times, planner)
        self.scheduler = Scheduler(
            self.manager,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.budget,
            times=self.times,
            decode_times=self.decode_times,
            prompt_times=self.prompt_times,
            shares=self.shares,
            speculator=self.speculator,
            trust_max_tokens=self.trust_max_tokens,
        )
        # What was written to a slot: all tokens up to and including its own, which is what its KV depends on.
        self.slots: dict[int, tuple[int, ...]] = {}
        self.draft_slots: dict[int, tuple[int, ...]] = {}
        self.turns = itertools.cycle(self.draft_rights or [True])
        self.steps = 0

    @property
    def max_len(self) -> int:
        return self.num_blocks * self.block_size

    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        tenant: str = "default",
        *,
        priority: int = 0,
        weight: float = 1.0,
        drafter: Drafter | None = None,
        sparse: SparseAttention | None = None,
    ) -> Sequence:
        name = f"r{len(self.ended) + len(self.live)}"
        guessers = [] if drafter is None else [Guesser(drafter)]
        model = None if self.draft_rights is None else ModelGuesser()
        speculation = Speculation(guessers, model=model) if guessers or model else None
        seq = Sequence(
            name,
            0,
            prompt,
            PARAMS,
            max_tokens=max_tokens,
            seed=0,
            tenant=tenant,
            weight=weight,
            sparse_attention=sparse,
            speculation=speculation,
            urgency=Urgency(priority=priority),
        )
        self.scheduler.add(seq)
        self.live.append(seq)
        return seq

    def abort(self, seq: Sequence) -> None:
        self.end(seq, "abort")

    def end(self, seq: Sequence, reason) -> None:
        self.scheduler.finish(seq, reason)
        self.live.remove(seq)
        self.ended[seq.request_id] = self.ended.get(seq.request_id, 0) + 1

    def step(self) -> SchedulerOutput:
        had_work = self.scheduler.has_work()
        if self.speculator.planner is not None:
            self.speculator.planner.rests = 0  # it is asked in every step
        output = self.scheduler.schedule()
        for rows in output.drafting:
            self.play_draft_model(rows)
        self.check_output(output, had_work)
        sampled = []
        for item in output.scheduled:
            seq, start = item.seq, item.seq.num_computed_tokens
            if item.samples:
                sampled.append(seq)
            rows = seq.token_ids[: start + item.num_new_tokens] + item.draft
            for position in range(start, len(rows)):
                block = seq.block_table[position // self.block_size]
                assert self.manager.blocks[block].ref_count == 1, "a shared block is written"
                self.slots[self.slot(seq, position)] = (seq.tenant, *rows[: position + 1])
        for item in output.scheduled:
            if not item.samples:
                self.manager.mark_computed(item.seq, item.num_new_tokens)
        for item in output.scheduled:
            if item.seq in sampled:
                self.settle(item)
        self.steps += 1
        return output

    def slot(self, seq: Sequence, position: int) -> int:
        block = seq.block_table[position // self.block_size]
        return block * self.block_size + position % self.block_size

    def play_draft_model(self, rows: DraftRows) -> None:
        seq = rows.seq
        for position in range(rows.start):
            assert self.draft_slots[self.slot(seq, position)] == (seq.tenant, *seq.token_ids[: position + 1])
        assert rows.start < rows.stop <= seq.num_tokens
        assert not rows.num_planned or (rows.stop == seq.num_tokens and not seq.draft)
        for _ in range(rows.num_planned):
            true = (sum(seq.token_ids + seq.draft) * 7 + seq.num_tokens + len(seq.draft)) % 3
            seq.draft.append(true if next(self.turns) else (true + 1) % 3)
        known = seq.token_ids + seq.draft
        for position in range(rows.start, rows.stop + max(0, len(seq.draft) - 1)):
            self.draft_slots[self.slot(seq, position)] = (seq.tenant, *known[: position + 1])
        self.manager.mark_draft_computed(seq, rows.stop - rows.start)

    def settle(self, item: ScheduledSequence) -> None:
        seq, accepted, before = item.seq, 0, item.seq.num_tokens
        for guess in [*item.draft, None]:
            seq.token_ids.append(next_token(seq))
            if seq.num_output_tokens >= seq.max_tokens or seq.token_ids[-1] != guess:
                break
            accepted += 1
        if seq.speculation is not None:
            self.manager.mark_draft_computed(seq, seq.speculation.num_computed(accepted))
            self.speculator.settle(seq.speculation, accepted, seq.num_tokens - before)
        self.manager.mark_computed(seq, item.num_new_tokens + accepted)
        if seq.num_output_tokens >= seq.max_tokens:
            self.end(seq, "length")

    def check_output(self, output: SchedulerOutput, had_work: bool) -> None:
        assert output.num_tokens <= self.budget
        assert bool(output.scheduled) == had_work, "work stands still"
        seqs = [item.seq for item in output.scheduled]
        assert len({id(seq) for seq in seqs}) == len(seqs), "a sequence twice in one step"
        for item in output.scheduled:
            assert item.seq.status is Status.RUNNING and item.seq in self.scheduler.running
            assert 1 <= item.num_new_tokens <= item.seq.num_uncomputed_tokens
            needed = -(-(item.seq.num_computed_tokens + item.num_rows) // self.block_size)
            # A draft that was wrong may have left a sequence more.
            assert len(item.seq.block_table) >= needed
            assert item.seq.speculation is not None or len(item.seq.block_table) == needed
            start, first = item.seq.num_computed_tokens, item.seq.first_sparse_position
            stop = start + item.num_new_tokens
            if first is not None and stop > first and item.num_new_tokens > 1:
                assert start <= first or start % 64 == 0, "a block of a sparse prompt is cut"
                assert stop % 64 == 0 or item.samples, "a block of a sparse prompt is cut"

    def check(self) -> None:
        self.scheduler.check()
        assert {id(seq) for seq in self.live} == {
            id(seq) for seq in (*self.scheduler.waiting, *self.scheduler.running)
        }
        for seq in self.scheduler.running:
            # Every computed position's KV is that of this very prefix, whoever computed it.
            for position in range(seq.num_computed_tokens):
                written = self.slots[self.slot(seq, position)]
                assert written == (seq.tenant, *seq.token_ids[: position + 1]), "another's KV"
            assert seq.num_draft_computed_tokens < seq.num_tokens
            for position in range(seq.num_draft_computed_tokens):
                written = self.draft_slots[self.slot(seq, position)]
                assert written == (seq.tenant, *seq.token_ids[: position + 1]), "another's draft KV"
        for block in self.manager.cached.values():
            for offset in range(block.num_draft_computed):
                slot = block.block_id * self.block_size + offset
                assert self.draft_slots[slot] == self.slots[slot], "a cached block's draft KV is another's"
            tail = tuple(block.token_ids)
            for offset in range(self.block_size):
                written = self.slots[block.block_id * self.block_size + offset]
                assert written[1:][-offset - 1 :] == tail[: offset + 1], "a cached block is not what it says"

    def drain(self) -> None:
        # Preemption computes tokens again, but the oldest sequence gets further with every step.
        limit = 50 + 4 * sum(seq.num_tokens + seq.max_tokens for seq in self.live) * (1 + len(self.live))
        while self.scheduler.has_work():
            self.step()
            self.check()
            limit -= 1
            assert limit > 0, "livelock"

    def check_baseline(self) -> None:
        assert not self.live and not self.scheduler.running and not self.scheduler.waiting
        assert len(self.manager.free) == self.manager.num_usable_blocks == self.num_blocks
        assert self.manager.num_used_blocks == 0
        assert all(block.ref_count == 0 for block in self.manager.blocks)
        assert all(count == 1 for count in self.ended.values()), "a request ended twice"
