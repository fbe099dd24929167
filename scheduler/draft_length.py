"""How many guessed tokens a step verifies: as many as pay for themselves, none where steps are full already.

A draft of k tokens that are each right with probability p, as long as those before were, yields p + p^2 + ... + p^k tokens
more and makes the step longer for everyone in it. Both are measured: p per sequence and drafter, from the guesses it made;
the time of a step per number of tokens (`step_times.py`). Pure functions.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from .step_times import StepTimes
from .track_record import expected_tokens

# Lengths that are tried; the last is the longest draft of one step.
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# Without a measurement: what another row, and a run of the draft model, costs, as a share of a step of one.
ROW_COST = 1 / 16
RUN_COST = 1 / 4
# A draft must promise this much more than the step loses by it: estimates are noisy, and a step that is too long is certain.
MARGIN = 1.1


def draft_length(times: StepTimes, acceptance: float, limit: int, num_tokens: int, num_seqs: int) -> int:
    """The draft length that gains most tokens over what the same time would yield without it; 0 where none gains.

    What a right guess saves is a step of decodes, also where it is verified beside a prompt.

    Args:
        times: of steps.
        acceptance: the chance that a guess is right where those before it were.
        limit: the longest draft that may be.
        num_tokens, num_seqs: of the step without it: its tokens, and the sequences that get one.
    """
    best, best_gain = 0, 0.0
    hoped = acceptance / (1 - acceptance)  # of a draft without an end
    # Not only up to the first length that loses: a size of step that was measured in a bad moment, as when the engine was
    # new, hid all behind it, and as nobody chose it again, for good (seen: right drafts that were never verified).
    for tried in LENGTHS:
        if tried > limit:
            break
        loss = MARGIN * num_seqs * rows_cost(times, num_tokens, tried, max(1, num_seqs))
        if hoped - loss <= best_gain:
            break  # and longer ones lose more
        gain = expected_tokens(acceptance, tried) - loss
        if gain > best_gain:
            best, best_gain = tried, gain
    return best


@dataclass(frozen=True, slots=True)
class Chance:
    """What the draft model may do for one sequence: `limit` as in `draft_length`; `otherwise`: right guesses expected of the
    draft that it would get for nothing."""

    acceptance: float
    limit: int
    otherwise: float = 0.0


def draft_lengths(
    times: StepTimes, run_times: StepTimes, chances: Rows[Chance], num_tokens: int, num_seqs: int
) -> list[int]:
    """The lengths that gain most, one per chance, where a guess for all of them together costs a run of the draft model.

    `run_times`: of those runs, by how many sequences are guessed for. The rest as in `draft_length`.
    """
    unit = max(1, num_seqs)
    none = [0] * len(chances)
    hoped = sum(chance.acceptance / (1 - chance.acceptance) - chance.otherwise for chance in chances)
    if hoped <= MARGIN * num_seqs * run_cost(times, run_times, len(chances), unit):
        return none
    most, rows = [], num_tokens
    for chance in chances:
        most.append(draft_length(times, chance.acceptance, chance.limit, rows, num_seqs))
        rows += most[-1]
    best, best_gain = none, 0.0
    runs = 0.0
    for previous, tried in zip((0, *LENGTHS), LENGTHS, strict=False):
        guessed_for = sum(length > previous for length in most)
        if not guessed_for:
            break
        # (Lengths lie in LENGTHS: from `previous` to `tried` it is the same sequences.)
        runs += (tried - previous) * run_cost(times, run_times, guessed_for, unit)
        lengths = [min(tried, length) for length in most]
        expected = sum(
            expected_tokens(chance.acceptance, length) - chance.otherwise
            for chance, length in zip(chances, lengths, strict=True)
            if length
        )
        gain = expected - MARGIN * num_seqs * (runs + rows_cost(times, num_tokens, sum(lengths), unit))
        if gain <= best_gain and best_gain:
            break
        if gain > best_gain:
            best, best_gain = lengths, gain
    return best


def rows_cost(times: StepTimes, num_tokens: int, more: int, unit: int) -> float:
    """By how much `more` rows make a step of `num_tokens` longer, in steps of `unit` tokens."""
    step, one = times.seconds(num_tokens), times.seconds(unit)
    if not step or not one:
        return more * ROW_COST
    return max((times.seconds(num_tokens + more) or step) - step, 0.0) / one


def run_cost(times: StepTimes, run_times: StepTimes, num_rows: int, num_tokens: int) -> float:
    """Time of a run of the draft model, in steps of `num_tokens`."""
    step, run = times.seconds(num_tokens), run_times.seconds(num_rows)
    return RUN_COST if not step or run is None else run / step
