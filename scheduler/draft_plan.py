"""Whose next tokens the draft model guesses in a step, how many, and what it computes to be able to.

While it runs the target stands still, so it must make up for its time: with the guesses of this step, or, where it has to
catch up with a sequence first, with those of the rest of it. Where it does not, it is left alone but for a trial now and
then. That is decided by estimates; what came of it goes to an account, and while that is overdrawn the draft model begins
with no sequence: it costs what was set apart for it, and at most one draft more. Numbers of tokens and their times only;
tensors are `draft_model.py`'s business.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .draft_length import LENGTHS, MARGIN, Chance, draft_lengths, rows_cost, run_cost
from .step_times import StepTimes
from .track_record import TrackRecord, expected_tokens

if TYPE_CHECKING:
    from .sequence import Sequence
    from .speculation import ModelGuesser

# Believed of a draft model before it has guessed: so many guesses, of which this share was right.
PRIOR_GUESSES, PRIOR_SHARE = 8.0, 0.7
OVERALL_FADING = 0.98
# What is known of all sequences counts as so many guesses beside a sequence's own.
OVERALL_GUESSES = 4.0
# Tokens that a run computes beside its guess for no time worth counting.
FEW = 4
# Catching up may make a step this much longer, and may always take so many tokens.
CATCH_UP_STRETCH = 0.5
LEAST_ROOM = 16
# How long an answer is taken to go on, before any has ended, and how much one that ended moves that. Where answers of 20
# tokens were taken for 128, catching up with them cost more than it gained.
FIRST_ANSWER_TOKENS, ANSWER_NEWS = 128.0, 0.05
# Tokens that a sequence goes on for before it is thought of again, once the draft model does not pay for it, and steps
# before any is, once it pays for none. Beside steps of 0.3 ms the thought alone took a tenth, and what it depends on
# changes slowly.
RETHINK_TOKENS, REST_STEPS = 16, 64
# Most guesses of a trial. One would tell how often the draft model is right, but not what it takes: a first run finds its
# weights driven out of the cache by the target's, and took more than twice as long as those behind it.
TRIAL_GUESSES = 4
# The share of its time that is set apart for a draft model that does not pay, what there is at the start, and the most that
# is saved up or owed, in steps.
TRIAL_SHARE = 0.002
FIRST_CREDIT, MOST_CREDIT = 8.0, 32.0


@dataclass(slots=True)
class DraftRows:
    """A sequence's share of the draft model's work in one step: its tokens from `start` to `stop` are computed, and then
    `num_planned` guessed, one a run."""

    seq: "Sequence"
    start: int
    stop: int
    num_planned: int = 0


@dataclass(slots=True)
class Candidate:
    """A sequence that the draft model might guess for.

    Attributes:
        start, stop: the tokens it has yet to compute for that, of those that this step knows.
        limit: most guesses; 0 where the step gives the sequence no token.
        otherwise: right guesses expected of the draft that it has anyway.
        guesser: how often the draft model was right about it.
        num_left: tokens that it may yet get.
    """

    seq: "Sequence"
    start: int
    stop: int
    limit: int
    otherwise: float
    guesser: "ModelGuesser"
    num_left: int

    @property
    def num_behind(self) -> int:
        return self.stop - self.start


class DraftPlanner:
    """Plans the draft model's part of every step.

    Args:
        times, run_times: of steps and of runs of the draft model, by their number of tokens.
        max_model_len: positions that the draft model can compute.
        max_rows: most tokens of one run.

    Attributes:
        has_cooled: whether the step under way is one without the draft model behind one with it: it finds the target's
            weights driven out of the cache, and tells nothing of what steps take where there is no draft model.
        rests: steps before it is asked again.
    """

    def __init__(self, times: StepTimes, run_times: StepTimes, *, max_model_len: int, max_rows: int) -> None:
        self.max_model_len = max_model_len
        self.overall = TrackRecord(PRIOR_GUESSES * PRIOR_SHARE, PRIOR_GUESSES, OVERALL_FADING)
        self.choose_lengths = draft_lengths
        self.pays_to_catch_up = self._pays_to_catch_up
        self._times = times
        self._run_times = run_times
        self._max_rows = max_rows
        self._credit = FIRST_CREDIT
        self.has_cooled = False
        self.rests = 0
        # Of the step under way, where the draft model has a part in it: its tokens and sequences without that part.
        self._plain: tuple[int, int] | None = None
        self._num_gained = 0
        self._answer_tokens = FIRST_ANSWER_TOKENS

    def acceptance(self, record: TrackRecord) -> float:
        """Of a sequence: as far as its own record says little, that of all."""
        right = record.right + OVERALL_GUESSES * self.overall.acceptance
        return right / (record.guessed + OVERALL_GUESSES)

    def plan(self, candidates: list[Candidate], *, num_tokens: int, num_seqs: int) -> list[DraftRows]:
        """For a step that without the draft model has `num_tokens` tokens and decodes `num_seqs` sequences.

        Those that it does not pay for are told when to ask again.
        """
        room = self._room(num_tokens)
        ready: list[Candidate] = []
        plan: list[DraftRows] = []
        for candidate in sorted(candidates, key=lambda candidate: candidate.num_behind):
            behind = candidate.num_behind
            if not room or not behind:
                continue
            if (behind > FEW or not candidate.limit) and not self.pays_to_catch_up(candidate, num_seqs):
                _leave_alone(candidate)
                continue
            candidate.guesser.is_followed = True
            taken = min(behind, room)
            room -= taken
            if candidate.limit and taken == behind:
                ready.append(candidate)
            else:
                plan.append(DraftRows(candidate.seq, candidate.start, candidate.start + taken))
        chances = [Chance(self.acceptance(each.guesser.record), each.limit, each.otherwise) for each in ready]
        lengths = (
            self.choose_lengths(self._times, self._run_times, chances, num_tokens, num_seqs) if ready else []
        )
        for candidate, length in zip(ready, lengths, strict=True):
            if length or candidate.num_behind > FEW:
                plan.append(DraftRows(candidate.seq, candidate.start, candidate.stop, length))
            else:
                _leave_alone(candidate)
        plan = plan or self._trial(candidates, num_tokens)
        if plan:
            self._plain = num_tokens, max(1, num_seqs)
            self.has_cooled = False
        elif all(each.guesser.rethink_at > each.seq.num_tokens for each in candidates):
            # It pays for none; where there is only nothing to do now, it is asked again in the next step.
            self.rests = REST_STEPS
        return plan

    def ended(self, num_output_tokens: int) -> None:
        """An answer came to its end after so many tokens."""
        self._answer_tokens += ANSWER_NEWS * (num_output_tokens - self._answer_tokens)

    def learn(self, num_guessed: int, num_right: int, num_gained: int) -> None:
        """So many guesses for a sequence were verified, of which the first `num_right` were right; it got `num_gained`
        tokens beyond the one that it would have got anyway."""
        self.overall.learn(num_guessed, num_right)
        self._num_gained += num_gained

    def settle(self, seconds: float) -> None:
        """The step under way took `seconds`, the draft model's runs included: enter what these gained, in steps, and the
        share that is set apart."""
        plain, self._plain = self._plain, None
        self.has_cooled = plain is not None
        gain = TRIAL_SHARE
        if plain is not None:
            num_tokens, num_seqs = plain
            usual, saved = self._times.seconds(num_tokens), self._times.seconds(num_seqs)
            if usual and saved:
                gain += self._num_gained / num_seqs - (seconds - usual) / saved
            self._num_gained = 0
        self._credit = max(-MOST_CREDIT, min(MOST_CREDIT, self._credit + gain))

    def _pays_to_catch_up(self, candidate: Candidate, num_seqs: int) -> bool:
        """Whether the rest of the sequence, beside others like it, gains more than computing what is behind costs."""
        if self._credit <= 0 and not candidate.guesser.is_followed:
            return False  # (who has begun to goes on, or what it took were lost)
        beside = max(1, num_seqs)
        acceptance = self.acceptance(candidate.guesser.record)
        run = self._run_cost(beside, beside)
        if acceptance / (1 - acceptance) <= MARGIN * run:
            return False  # not even for a draft without end
        cost = beside * (self._run_cost(candidate.num_behind, beside) - self._run_cost(1, beside))
        left = min(candidate.num_left, self._answer_tokens)
        for length in LENGTHS:
            lost = length * run + rows_cost(self._times, beside, beside * length, beside)
            expected = expected_tokens(acceptance, length)
            gain = expected - MARGIN * lost
            if gain <= 0:
                return False
            if gain * left / (1 + expected) > cost:
                return True
        return False

    def _trial(self, candidates: Many[Candidate], num_tokens: int) -> list[DraftRows]:
        """A few guesses for whom they cost least, from the time set apart for that."""
        due = [each for each in candidates if each.limit and not each.otherwise and each.num_behind]
        if not due:
            return []
        candidate = min(due, key=lambda each: each.num_behind)
        num_guesses = min(TRIAL_GUESSES, candidate.limit)
        cost = self._run_cost(candidate.num_behind, num_tokens)
        cost += (num_guesses - 1) * self._run_cost(1, num_tokens)
        cost += rows_cost(self._times, num_tokens, num_guesses, num_tokens)
        # All that it takes must be there before anything is spent: a guess that is never reached tells nothing.
        if cost > self._credit:
            return []
        taken = min(candidate.num_behind, self._room(num_tokens))
        is_ready = taken == candidate.num_behind
        candidate.guesser.rethink_at = 0  # it goes on at once
        return [DraftRows(candidate.seq, candidate.start, candidate.start + taken, num_guesses * is_ready)]

    def _room(self, num_tokens: int) -> int:
        """Tokens that the first run of a step may compute."""
        step = self._times.seconds(num_tokens)
        if step is None:
            return self._max_rows
        least = min(LEAST_ROOM, self._max_rows)
        return self._run_times.most_tokens(CATCH_UP_STRETCH * step, least, self._max_rows)

    def _run_cost(self, num_rows: int, num_tokens: int) -> float:
        return run_cost(self._times, self._run_times, num_rows, num_tokens)


def _leave_alone(candidate: Candidate) -> None:
    candidate.guesser.is_followed = False
    candidate.guesser.rethink_at = candidate.seq.num_tokens + RETHINK_TOKENS
