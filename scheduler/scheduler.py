"""Decides which sequence computes how many tokens in the next step. Pure bookkeeping: no tensors, no clock, no text."""

from collections import deque
from dataclasses import dataclass, field

from .block_manager import BlockManager
from .outputs import FinishReason
from .sequence import Sequence, Status


@dataclass(slots=True)
class ScheduledSequence:
    seq: Sequence
    num_new_tokens: int

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
        return sum(item.num_new_tokens for item in self.scheduled)


class Scheduler:
    """Running first, then waiting, first come first served, within a token budget.

    Decodes come before prefill chunks, so that a long prompt never keeps a stream from its next token. When blocks run out,
    the youngest running sequence is preempted: its blocks are released and it is computed again later. The oldest one
    is never preempted, so some sequence always progresses.

    Chunks of a sparse prompt end where its blocks do. `max_num_batched_tokens` must have room for one of these beside the
    decodes of all others (`EngineConfig` sees to that), so the oldest such prompt progresses in every step.
    """

    def __init__(
        self, block_manager: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        # A step must have room for every running sequence's next token.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self.max_num_batched_tokens = max_num_batched_tokens
        self.block_manager = block_manager
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
            num_new = _next_chunk(seq, budget)
            if num_new == 0:
                continue  # a block of a sparse prompt does not fit behind older work; a step with more room comes
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
            self._admit(chosen, budget)
        ordered = sorted(chosen.items(), key=lambda item: item[0].num_uncomputed_tokens > 1)
        return SchedulerOutput([ScheduledSequence(seq, num_new) for seq, num_new in ordered])

    def _admit(self, chosen: dict[Sequence, int], budget: int) -> None:
        """Move waiting sequences to running while tokens, places and blocks last."""
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
            num_new = _next_chunk(seq, budget, computed=len(prefix) * manager.block_size)
            if num_new == 0:
                self.waiting.appendleft(seq)
                break
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
            manager.extend(seq, num_new)
            chosen[seq] = num_new
            budget -= num_new
            if next_hash is not None:
                coming.add(next_hash)
        self.waiting.extendleft(reversed(held))

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self.block_manager.release(seq)
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


def _next_chunk(seq: Sequence, budget: int, computed: int | None = None) -> int:
    """Tokens of `seq` to compute next; `computed`: how many will be when it is admitted."""
    start = seq.num_computed_tokens if computed is None else computed
    stop = min(seq.num_tokens, start + budget)
    return (stop if stop == seq.num_tokens else max(start, seq.last_cut(stop))) - start
