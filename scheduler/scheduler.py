"""Decides which sequence computes how many tokens in the next step. Pure bookkeeping: no tensors, no clock, no text."""

from collections import deque
from dataclasses import dataclass, field

from .block_manager import BlockManager
from .outputs import FinishReason
from .sequence import Sequence, Status
from .speculation import Speculator


@dataclass(slots=True)
class ScheduledSequence:
    """A sequence and the rows that it gets: `num_new_tokens` of its tokens, then its `draft` to be verified."""

    seq: Sequence
    num_new_tokens: int

    @property
    def draft(self) -> list[int]:
        return self.seq.draft

    @property
    def num_rows(self) -> int:
        return self.num_new_tokens + len(self.seq.draft)

    @property
    def samples(self) -> bool:
        """Whether this step computes the sequence's last known token, so that the next can be sampled."""
        return self.num_new_tokens == self.seq.num_uncomputed_tokens


@dataclass(slots=True)
class SchedulerOutput:
    """One step's work: decodes (one new token) first, then prefills."""

    scheduled: list[ScheduledSequence] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Rows of the step, drafts included."""
        return sum(item.num_rows for item in self.scheduled)


class Scheduler:
    """Running first, then waiting, first come first served, within a token budget.

    Decodes come before prefill chunks, so that a long prompt never keeps a stream from its next token. When blocks run out,
    the youngest running sequence is preempted: its blocks are released and it is computed again later. The oldest one
    is never preempted, so some sequence always progresses.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        speculator: Speculator | None = None,
    ) -> None:
        # A step must have room for every running sequence's next token.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.block_manager = block_manager
        self._speculator = speculator
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def add(self, seq: Sequence) -> None:
        assert seq.status is Status.WAITING
        self.waiting.append(seq)

    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a live sequence, wherever it is, and release its blocks."""
        if seq.status is Status.WAITING:
            self.waiting.remove(seq)
        else:
            self.running.remove(seq)
        self.block_manager.release(seq)
        seq.finish_reason = reason
        seq.move_to(Status.FINISHED)

    def schedule(self) -> SchedulerOutput:
        """Choose the next step's work and make room for its KV. Empty only when there is nothing to do."""
        budget = self.max_num_batched_tokens
        chosen: dict[Sequence, int] = {}
        decodes = [seq for seq in self.running if seq.num_uncomputed_tokens == 1]
        prefills = [seq for seq in self.running if seq.num_uncomputed_tokens > 1]
        preempted = False
        for seq in (*decodes, *prefills):
            if budget == 0:
                break
            if seq.status is not Status.RUNNING:
                continue  # preempted for an older one in this very step
            num_new = min(seq.num_uncomputed_tokens, budget)
            while seq.status is Status.RUNNING and not self.block_manager.can_extend(seq, num_new):
                victim = self.running[-1]
                budget += chosen.pop(victim, 0)
                self._preempt(victim)
                preempted = True
            if seq.status is Status.RUNNING:
                self.block_manager.extend(seq, num_new)
                chosen[seq] = num_new
                budget -= num_new
        if not preempted:
            budget = self._admit(chosen, budget)
        self._speculate(chosen, budget)
        ordered = sorted(chosen.items(), key=lambda item: item[0].num_uncomputed_tokens > 1)
        return SchedulerOutput([ScheduledSequence(seq, num_new) for seq, num_new in ordered])

    def _speculate(self, chosen: dict[Sequence, int], budget: int) -> None:
        """Drafts for the sequences that are due a token, from what is left of the budget and of the blocks."""
        if self._speculator is None:
            return
        num_tokens = self.max_num_batched_tokens - budget
        due = [seq for seq, num_new in chosen.items() if num_new == seq.num_uncomputed_tokens]
        for seq in due:
            if seq.speculation is None or (seq.speculation.after_prompt and chosen[seq] > 1):
                continue
            # The step itself gives one token; what is drafted beyond the last could never be used.
            limit = min(budget, seq.max_tokens - seq.num_output_tokens - 1)
            if limit < 1:
                continue
            self._speculator.propose(
                seq.speculation, seq.token_ids, limit=limit, num_tokens=num_tokens, num_seqs=len(due)
            )
            num_rows = chosen[seq] + len(seq.draft)
            if not self.block_manager.can_extend(seq, num_rows):
                seq.drop_draft()  # a guess is worth nobody's blocks
                continue
            self.block_manager.extend(seq, num_rows)
            budget -= len(seq.draft)
            num_tokens += len(seq.draft)

    def _admit(self, chosen: dict[Sequence, int], budget: int) -> int:
        """Move waiting sequences to running while tokens, places and blocks last; returns the budget that is left."""
        manager = self.block_manager
        # Hashes of the blocks that running prefills are about to write: who would compute the same block waits for it
        # and shares it (n completions of one prompt, requests with one new system prompt).
        coming = {
            block_hash
            for seq in self.running
            if seq.num_uncomputed_tokens > 1
            and (block_hash := manager.next_hash(seq, seq.num_computed_tokens // manager.block_size))
        }
        held: list[Sequence] = []
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = self.waiting.popleft()
            prefix = manager.find_cached_prefix(seq)
            next_hash = manager.next_hash(seq, len(prefix))
            if next_hash is not None and next_hash in coming:
                held.append(seq)
                continue
            if not manager.can_admit(seq, prefix):
                self.waiting.appendleft(seq)
                break
            manager.admit(seq, prefix)
            if not seq.was_admitted:
                seq.was_admitted = True
                seq.num_cached_tokens = seq.num_computed_tokens
            seq.move_to(Status.RUNNING)
            self.running.append(seq)
            num_new = min(seq.num_uncomputed_tokens, budget)
            manager.extend(seq, num_new)
            chosen[seq] = num_new
            budget -= num_new
            if next_hash is not None:
                coming.add(next_hash)
        self.waiting.extendleft(reversed(held))
        return budget

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self.block_manager.release(seq)
        seq.drop_draft()
        seq.move_to(Status.WAITING)
        self.waiting.appendleft(seq)
        self.num_preemptions += 1

    def check(self) -> None:
        """Assert what must hold between steps; for tests and debugging."""
        live = [*self.waiting, *self.running]
        assert len({id(seq) for seq in live}) == len(live), "a sequence in two queues"
        assert all(seq.status is Status.WAITING and not seq.block_table for seq in self.waiting)
        assert all(seq.status is Status.RUNNING for seq in self.running)
        assert len(self.running) <= self.max_num_seqs
        for seq in self.running:
            assert 0 <= seq.num_computed_tokens < seq.num_tokens
            assert len(seq.block_table) >= self.block_manager.blocks_for(seq.num_computed_tokens)
        self.block_manager.check(live)
