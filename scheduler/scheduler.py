"""Decides which sequence computes how many tokens in the next step. Pure bookkeeping: no tensors, no clock, no text."""

from dataclasses import dataclass, field

from ..kernels.span import PROMPT_BLOCK
from .block_manager import Block, BlockManager
from .draft_plan import DraftRows
from .outputs import FinishReason
from .peak_kv import peak_blocks
from .sequence import UNKNOWN, Sequence, Status
from .speculation import Speculator
from .step import Step
from .step_drafts import add_drafts
from .step_times import StepTimes
from .tenant_shares import TenantShares
from .waiting_queue import WaitingQueue

# How much longer a step may take for the sake of prompts than for its decodes alone. 2 is promised, and expectations err:
# asked for 1.7, steps took 2.0 times as long (measured, 0.5B shape, 8 streams); asked for 1.5, 1.45.
PROMPT_STRETCH = 1.5
# Tokens of prompts that a step takes on even if it takes longer. Over a long context a chunk costs the reading of its keys
# at any size: beside a prompt of 8,000 tokens (0.5B shape, 8 streams) 8 gave 2.0 times the p99 between tokens and 30 s to
# its first, 6 2.2 times and 40 s.
LEAST_PROMPT_ROOM = 8
# Where these would take longer than so many times, as on chips without an instruction for products of bytes, a step takes
# on as many as do not, and a few in any case: a prompt gets on.
MOST_STRETCH = 1.7
FEWEST = 2
# What prompts cost a step however few they are is lost in any case; they may take so many times that, whatever was promised.
# On an H100 (8B shape) 64 decodes are replayed in 7 ms and launched beside any prompt in 38: two tokens in each such step
# kept everybody waiting, 250 tokens a second where there had been 5,800.
OVERHEAD_STRETCH = 2.0
# Up to so many times the least size steps with prompts tell what that is.
FEW = 4
# After so many steps beside prompts that hold back for streams, these have one alone: their contexts grow, and what a step
# without prompts takes must stay known.
MOST_STEPS_BESIDE = 48


@dataclass(slots=True)
class ScheduledSequence:
    """A sequence and the rows that it gets: `num_new_tokens` of its tokens, then its `draft` to be verified.

    Attributes:
        start: position of the first of them.
        samples: whether the last of them is the sequence's last, so that the next can be sampled.
        is_ahead: whether that one's id is for the step before to tell.
    """

    seq: Sequence
    num_new_tokens: int
    start: int = field(init=False)
    samples: bool = field(init=False)
    is_ahead: bool = field(init=False)
    _num_releases: int = field(init=False)

    def __post_init__(self) -> None:
        seq = self.seq
        self.start, self._num_releases = seq.num_computed_tokens, seq.num_releases
        self.samples = self.num_new_tokens == seq.num_uncomputed_tokens
        self.is_ahead = self.samples and seq.is_ahead

    @property
    def stop(self) -> int:
        """Where the token stands that is sampled."""
        return self.start + self.num_new_tokens

    @property
    def is_stale(self) -> bool:
        """Whether the sequence has ended or was preempted since: what comes of this is nobody's."""
        return self.seq.num_releases != self._num_releases

    @property
    def draft(self) -> list[int]:
        return self.seq.draft

    @property
    def num_rows(self) -> int:
        return self.num_new_tokens + len(self.seq.draft)


@dataclass(slots=True)
class SchedulerOutput:
    """One step's work: decodes (one new token) first, then prefills.

    `drafting`: what the draft model does before, which fills in the drafts that are planned.
    """

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    drafting: list[DraftRows] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Rows of the step, drafts included."""
        return sum(item.num_rows for item in self.scheduled)

    @property
    def num_keys(self) -> int:
        """Keys that its rows attend to, counted for each row, and for a chunk as if its last row stood for all."""
        return sum(item.num_rows * (item.start + item.num_rows) for item in self.scheduled)


class Scheduler:
    """Decodes first, then prompts, whoever is most urgent and has had the least, within a token budget.

    A long prompt never keeps a stream from its next token, and delays it no more than `prompt_room` allows. When blocks run
    out, the least urgent and youngest running sequence is preempted: its blocks are released and it is computed again
    later. The most urgent and oldest one never is, so some sequence always progresses.

    Chunks of a sparse prompt end where its blocks do. `max_num_batched_tokens` must have room for one of these beside the
    decodes of all others; `EngineConfig` sees to that.

    Args:
        times: what steps have taken; None where nothing is measured, and prompts get all of the budget.
        decode_times: of those without prompts. A step of few tokens more, which read the keys of a long prompt, is of the
            same size, and what streams may be slowed down by must not be measured by what slows them down. None: as `times`.
        prompt_times: of those with prompts. None: unknown.
        shares: what tenants have had.
        speculator: None where nobody guesses.
        trust_max_tokens: who would not fit beside the others, all at the length they may reach, waits instead of being
            preempted later.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        times: StepTimes | None = None,
        decode_times: StepTimes | None = None,
        prompt_times: StepTimes | None = None,
        shares: TenantShares | None = None,
        speculator: Speculator | None = None,
        trust_max_tokens: bool = False,
    ) -> None:
        # A step must have room for every running sequence's next token.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.block_manager = block_manager
        self._times = times or StepTimes()
        self._decode_times = decode_times or self._times
        self._prompt_times = prompt_times or StepTimes()
        self._shares = shares or TenantShares()
        self._speculator = speculator
        self._steps_beside = 0
        self._trusts_max_tokens = trust_max_tokens
        self.waiting = WaitingQueue(self._shares)
        self.running: list[Sequence] = []
        self.held: dict[Sequence, None] = {}
        self.num_preemptions = 0

    def hold(self, seq: Sequence) -> None:
        """Take on a sequence that cannot be computed yet; `add` lets it go."""
        self._shares.enter(seq.tenant, seq.weight)
        self.held[seq] = None

    def add(self, seq: Sequence) -> None:
        if seq in self.held:
            del self.held[seq]
        else:
            self._shares.enter(seq.tenant, seq.weight)
        self.waiting.push(seq)

    def has_work(self) -> bool:
        """Whether anything can be computed."""
        return bool(self.running or len(self.waiting))

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a live sequence, wherever it is, and release its blocks."""
        if seq in self.held:
            del self.held[seq]
        elif seq.status is Status.WAITING:
            self.waiting.remove(seq)
        else:
            self.running.remove(seq)
        self.block_manager.release(seq)
        self._shares.leave(seq.tenant)
        seq.finish_reason = reason
        seq.move_to(Status.FINISHED)

    def schedule(self) -> SchedulerOutput:
        """Choose the next step's work and make room for its KV. Empty only when there is nothing to do, or nothing before
        the step under way is over."""
        step = Step(self.max_num_batched_tokens)
        ready = [seq for seq in self.running if seq.num_uncomputed_tokens == 1 and not seq.is_last_coming]
        for seq in ready:
            if step.budget and seq.status is Status.RUNNING:  # not preempted for another in this very step
                self._continue(seq, 1, step)
        decodes = list(step.chosen)
        prompts = [seq for seq in self.running if seq.num_uncomputed_tokens > 1]
        if num_prompts := len(prompts) + len(self.waiting):
            context = max((seq.num_computed_tokens for seq in prompts), default=0)
            room = self.prompt_room(decodes, num_prompts, context)
            self._steps_beside = self._steps_beside + 1 if room < step.budget else 0
            if self._steps_beside <= MOST_STEPS_BESIDE:
                self._compute_prompts(step, min(step.budget, room))
        if len(step.chosen) == len(decodes):
            self._steps_beside = 0
        for seq, num_new in step.chosen.items():
            self._shares.charge(seq.tenant, num_new, is_output=seq.num_output_tokens > 0)
        drafting = add_drafts(step, self.block_manager, self._speculator) if self._speculator else []
        ordered = sorted(step.chosen.items(), key=lambda item: item[0].num_uncomputed_tokens > 1)
        return SchedulerOutput([ScheduledSequence(seq, num_new) for seq, num_new in ordered], drafting)

    def advance(self, item: ScheduledSequence) -> None:
        """Its step is under way: the next is scheduled as if it were over."""
        self.block_manager.mark_computed(item.seq, item.num_new_tokens)
        if item.samples:
            item.seq.token_ids.append(UNKNOWN)

    def prompt_room(self, decodes: list[Sequence], num_prompts: int, context: int) -> int:
        """How many tokens of prompts a step may take on beside `decodes`, of a prompt of which `context` are computed.

        It may take PROMPT_STRETCH times as long as without prompts, or MOST_STRETCH times for LEAST_PROMPT_ROOM tokens; or
        longer by OVERHEAD_STRETCH times what prompts cost it at any size. Where more sequences wait for their first token
        than for their next one, all that many times longer.
        """
        num_decodes, num_keys = len(decodes), sum(seq.num_tokens for seq in decodes)
        most = self.max_num_batched_tokens - num_decodes
        alone = None
        if num_decodes:
            known = self._decode_times.seconds(num_decodes, num_keys)
            alone = self._times.seconds(num_decodes, num_keys) if known is None else known
        if alone is None or most <= LEAST_PROMPT_ROOM:
            return most
        few = FEW * (num_decodes + LEAST_PROMPT_ROOM)
        beside = self._prompt_times.seconds_of_nothing_more(num_decodes, num_keys, few)
        overhead = 0.0 if beside is None else max(0.0, beside - alone)
        patience = max(1.0, num_prompts / num_decodes)

        def keys_of(num_tokens: int) -> int:
            of_prompt = num_tokens - num_decodes
            return num_keys + of_prompt * (context + of_prompt)

        def room(stretch: float, most: int) -> int:
            allowed = patience * max(stretch * alone, alone + OVERHEAD_STRETCH * overhead)
            least = num_decodes + FEWEST
            return self._times.most_tokens(allowed, least, num_decodes + most, keys_of) - num_decodes

        found = room(PROMPT_STRETCH, most)
        return found if found >= LEAST_PROMPT_ROOM else room(MOST_STRETCH, LEAST_PROMPT_ROOM)

    def _compute_prompts(self, step: Step, room: int) -> None:
        """Go on with running prompts, and move waiting sequences to running while tokens, places and blocks last."""
        manager = self.block_manager
        prompts = [seq for seq in self.running if seq.num_uncomputed_tokens > 1]
        prompts.sort(key=self._urgency)
        prompts.reverse()  # the next at the end; of equals the oldest
        # Hashes of the blocks that running prompts are about to write: who would compute the same block waits for it
        # and shares it (n completions of one prompt, requests with one new system prompt).
        coming = {
            block_hash
            for seq in prompts
            if (block_hash := manager.next_hash(seq, seq.num_computed_tokens // manager.block_size))
        }
        held: list[Sequence] = []
        admits = True
        while room > 0 and step.budget > 0:
            admits = admits and not step.preempted
            waiting = self.waiting.peek() if admits else None
            if prompts and (waiting is None or self._urgency(prompts[-1]) <= self._urgency(waiting)):
                seq = prompts.pop()
                if seq.status is Status.RUNNING:
                    room -= self._continue(seq, _next_chunk(seq, room, step.budget), step)
                continue
            if waiting is None:
                break
            prefix = manager.find_cached_prefix(waiting)
            if not _next_chunk(waiting, room, step.budget, computed=len(prefix) * manager.block_size):
                admits = False  # a block of a sparse prompt does not fit; a step with more room comes
                continue
            next_hash = manager.next_hash(waiting, len(prefix))
            if next_hash is not None and next_hash in coming:
                held.append(self.waiting.pop())
                continue
            if not self._has_place(waiting, prefix):
                victim = self._least_urgent()
                if victim is None or victim.urgency.priority <= waiting.urgency.priority:
                    admits = False
                else:
                    step.take_back(victim)
                    self._preempt(victim)
                    prompts = [seq for seq in prompts if seq is not victim]
                continue
            self._admit(self.waiting.pop(), prefix)
            room -= self._continue(waiting, _next_chunk(waiting, room, step.budget), step)
            if next_hash is not None:
                coming.add(next_hash)
        for seq in held:
            self.waiting.push(seq)

    def _urgency(self, seq: Sequence) -> tuple[int, float]:
        """Lower goes first."""
        return seq.urgency.priority, self._shares.had(seq.tenant)

    def _has_place(self, seq: Sequence, prefix: list[Block]) -> bool:
        if len(self.running) >= self.max_num_seqs or not self.block_manager.can_admit(seq, prefix):
            return False
        if not (self._trusts_max_tokens and self.running):
            return True
        manager = self.block_manager
        return peak_blocks([*self.running, seq], manager.block_size) <= manager.num_usable_blocks

    def _admit(self, seq: Sequence, prefix: list[Block]) -> None:
        self.block_manager.admit(seq, prefix)
        if not seq.was_admitted:
            seq.was_admitted = True
            seq.num_cached_tokens = min(seq.num_computed_tokens, seq.num_prompt_tokens)
        seq.move_to(Status.RUNNING)
        self.running.append(seq)

    def _continue(self, seq: Sequence, num_new: int, step: Step) -> int:
        """Compute the next tokens of a running sequence, whatever must be preempted for it; returns how many."""
        if not num_new:
            return 0
        while not self.block_manager.can_extend(seq, num_new):
            victim = self._least_urgent()
            assert victim is not None
            step.take_back(victim)
            self._preempt(victim)
            step.preempted = True
            if victim is seq:
                return 0
        self.block_manager.extend(seq, num_new)
        step.choose(seq, num_new)
        return num_new

    def _least_urgent(self) -> Sequence | None:
        """Whom to preempt: the youngest of the lowest priority. An order that time does not change: the first in it is
        never preempted, so that it gets to its end."""
        return max(
            reversed(self.running), key=lambda seq: seq.urgency.priority, default=None
        )  # of equals, max takes the first

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self.block_manager.release(seq)
        seq.drop_draft()
        seq.move_to(Status.WAITING)
        self.waiting.push(seq)
        self.num_preemptions += 1

    def check(self) -> None:
        """Assert what must hold between steps; for tests and debugging."""
        live = [*self.held, *self.waiting, *self.running]
        assert len({id(seq) for seq in live}) == len(live), "a sequence in two queues"
        assert all(seq.status is Status.WAITING for seq in (*self.held, *self.waiting))
        assert not any(seq.block_table for seq in (*self.held, *self.waiting))
        assert all(seq.status is Status.RUNNING for seq in self.running)
        assert len(self.running) <= self.max_num_seqs
        assert not any(seq.draft for seq in live), "a draft outlived its step"
        for seq in self.running:
            assert 0 <= seq.num_computed_tokens < seq.num_tokens
            assert len(seq.block_table) >= self.block_manager.blocks_for(seq.num_computed_tokens)
        self.block_manager.check(live)


def _next_chunk(seq: Sequence, room: int, budget: int, computed: int | None = None) -> int:
    """Tokens of `seq` to compute next, of `room` for prompts; `computed`: how many will be when it is admitted.

    A sparse prompt may take a whole block where the step has the budget, though streams would have it wait.
    """
    start = seq.num_computed_tokens if computed is None else computed
    if seq.first_sparse_position is not None:
        room = max(room, PROMPT_BLOCK)
    stop = min(seq.num_tokens, start + min(room, budget))
    return (stop if stop == seq.num_tokens else max(start, seq.last_cut(stop))) - start
