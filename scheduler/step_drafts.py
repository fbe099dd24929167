"""Adds drafts to a step: from what is left of its budget and of the blocks, for the sequences that are due a token."""

from .block_manager import BlockManager
from .draft_plan import Candidate, DraftPlanner, DraftRows
from .sequence import Sequence
from .speculation import ModelGuesser, Speculation, Speculator
from .step import Step
from .track_record import expected_tokens


def add_drafts(step: Step, manager: BlockManager, speculator: Speculator) -> list[DraftRows]:
    """Give `step` the drafts that are known already, and return what the draft model is to do beside."""
    due = [seq for seq, num_new in step.chosen.items() if num_new == seq.num_uncomputed_tokens]
    num_tokens = step.num_tokens
    for seq in due:
        if seq.speculation is None or not seq.speculation.guessers:
            continue
        limit = step.draft_room(seq)
        if not limit:
            continue
        speculator.propose(
            seq.speculation, seq.token_ids, limit=limit, num_tokens=num_tokens, num_seqs=len(due)
        )
        if seq.matcher is not None:
            del seq.draft[seq.matcher.num_valid(seq.draft) :]
        if _extend(step, manager, seq, len(seq.draft)):
            num_tokens += len(seq.draft)
        else:
            seq.drop_draft()  # a guess is worth nobody's blocks
    planner = speculator.planner
    if planner is None:
        return []
    if planner.rests:
        planner.rests -= 1
        return []
    return _plan(step, manager, planner, len(due))


def _plan(step: Step, manager: BlockManager, planner: DraftPlanner, num_due: int) -> list[DraftRows]:
    """The draft model's guesses, where they promise more than the drafts that there are."""
    candidates = [
        candidate
        for seq in step.chosen
        if seq.speculation is not None
        and (model := seq.speculation.model) is not None
        and len(seq.token_ids) >= model.rethink_at
        and (candidate := _candidate(step, manager, planner, seq, seq.speculation, model))
    ]
    if not candidates:
        return []
    plan = planner.plan(candidates, num_tokens=step.num_tokens, num_seqs=num_due)
    for rows in plan:
        if not rows.num_planned or rows.seq.speculation is None:
            continue
        step.budget += len(rows.seq.draft)
        rows.seq.drop_draft()
        rows.num_planned = min(rows.num_planned, step.budget)
        if _extend(step, manager, rows.seq, rows.num_planned):
            rows.seq.speculation.source = rows.seq.speculation.model
        else:
            rows.num_planned = 0
    return plan


def _candidate(
    step: Step,
    manager: BlockManager,
    planner: DraftPlanner,
    seq: Sequence,
    speculation: Speculation,
    model: ModelGuesser,
) -> Candidate | None:
    stop = seq.num_computed_tokens + step.chosen[seq]
    if stop > planner.max_model_len:
        return None
    otherwise = 0.0
    if speculation.source is not None and speculation.draft:
        acceptance = speculation.source.record.acceptance
        if acceptance >= planner.acceptance(model.record):
            return None
        otherwise = expected_tokens(acceptance, len(speculation.draft))
    # A last guess is not computed by the model that makes it.
    room = planner.max_model_len - seq.num_tokens + 1
    return Candidate(
        seq,
        manager.find_draft_computed(seq),
        stop,
        max(0, min(room, step.draft_room(seq))),
        otherwise,
        model,
        seq.max_tokens - seq.num_output_tokens,
    )


def _extend(step: Step, manager: BlockManager, seq: Sequence, num_drafted: int) -> bool:
    """Take the budget for a draft and the blocks for its KV; False where there are none."""
    num_rows = step.chosen[seq] + num_drafted
    if not manager.can_extend(seq, num_rows):
        return False
    manager.extend(seq, num_rows)
    step.budget -= num_drafted
    return True
