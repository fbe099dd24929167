"""The drafts that sequences' next steps verify: whose guesses they are, and what became of them.

Token ids, lengths and times only; the output never depends on any of it.
"""

from dataclasses import dataclass, field

from .draft_length import draft_length
from .draft_plan import DraftPlanner
from .drafters import CompletionDraft, Drafter, DrafterName
from .outputs import DrafterStats
from .step_times import StepTimes
from .track_record import TrackRecord

# What is believed of a drafter before it has guessed: so many guesses, of which this share was right.
PRIORS: dict[DrafterName, tuple[float, float]] = {
    "draft": (4.0, 0.9),
    "grammar": (8.0, 0.9),
    "ngram": (2.0, 0.5),
}
# A completion that has been right so far may end to be so. Where an answer goes another way, and now and then says again
# what it said before, twelve more drafts were verified in vain, of 40 ms instead of 9 (0.5B shape): three now. With its
# first wrong guess it begins anew: what is found of it behind is another claim, for which 48 rows are too much.
FADING_WHEN_LOST = 0.2
# Where no draft pays, guesses are still compared with what came, once in so many tokens: drafters may get better.
SHADOW_EVERY = 4


@dataclass(slots=True)
class Guesser:
    """A drafter of one sequence, and how often it was right."""

    drafter: Drafter
    record: TrackRecord = field(init=False)
    # What it would have guessed in a step that verified nothing: tells whether it has become worth trying.
    unverified: int | None = None

    def __post_init__(self) -> None:
        weight, share = PRIORS[self.drafter.name]
        self.record = TrackRecord(weight * share, weight)
        if self.drafter.name == "draft":
            self.record.renewal = weight, weight * share
            self.record.fading_when_lost = FADING_WHEN_LOST

    @property
    def name(self) -> DrafterName:
        return self.drafter.name

    @property
    def acceptance(self) -> float:
        return self.record.acceptance


@dataclass(slots=True)
class ModelGuesser:
    """How often the draft model was right about one sequence. What it guesses is computed for all sequences together.

    `rethink_at`: number of tokens before which it is not asked again, since it did not pay; `is_followed`: whether it keeps
    up with the sequence, or has begun to catch up.
    """

    record: TrackRecord = field(default_factory=lambda: TrackRecord(0.0, 0.0))
    rethink_at: int = 0
    is_followed: bool = False
    name: DrafterName = "draft_model"


@dataclass(slots=True)
class Speculation:
    """Who guesses for one sequence, and the draft that its next step verifies.

    Attributes:
        guessers: best first.
        after_prompt: the step that computes the prompt's end verifies nothing, since its rows are attended to another way.
        model: None where the draft model does not guess for it.
        source: whose guess the draft is.
    """

    guessers: list[Guesser]
    after_prompt: bool = False
    model: ModelGuesser | None = None
    draft: list[int] = field(default_factory=list)
    source: Guesser | ModelGuesser | None = None

    def suggest(self, draft: CompletionDraft) -> None:
        """Hear this draft instead of the one so far, behind what a grammar forces and before all others."""
        others = [guesser for guesser in self.guessers if guesser.name != "draft"]
        others.insert(sum(guesser.name == "grammar" for guesser in others), Guesser(draft))
        self.guessers = others

    def num_computed(self, num_right: int) -> int:
        """Of the draft's first `num_right` tokens, those that the draft model has computed; not its last guess."""
        if self.model is None or self.source is not self.model:
            return 0
        return max(0, min(num_right, len(self.draft) - 1))

    def drop(self) -> None:
        self.draft, self.source = [], None


class Speculator:
    """Gives sequences their drafts and learns from what became of them.

    `planner`: of the draft model's guesses; None without one.
    """

    def __init__(self, times: StepTimes, planner: DraftPlanner | None = None) -> None:
        self.planner = planner
        self._times = times
        self.choose_length = draft_length
        self.stats: dict[str, DrafterStats] = {}

    def propose(
        self, speculation: Speculation, token_ids: list[int], *, limit: int, num_tokens: int, num_seqs: int
    ) -> None:
        """Set the draft, of at most `limit` tokens, for a step that without it has `num_tokens` tokens and decodes
        `num_seqs` sequences."""
        speculation.drop()
        for guesser in speculation.guessers:
            if guesser.unverified is not None:
                guesser.record.learn(1, int(guesser.unverified == token_ids[-1]))
                guesser.unverified = None
            length = self.choose_length(self._times, guesser.acceptance, limit, num_tokens, num_seqs)
            if not length and len(token_ids) % SHADOW_EVERY:
                continue
            guess = guesser.drafter.propose(token_ids, max(1, length))
            if not guess:
                continue
            if length:
                speculation.draft, speculation.source = guess, guesser
            else:
                guesser.unverified = guess[0]
            return

    def foresees(
        self, speculation: Speculation, token_ids: list[int], *, limit: int, num_tokens: int, num_seqs: int
    ) -> bool:
        """Whether there would be a draft behind `token_ids`, the token that follows being still unknown: most likely there
        is one behind that, too. As `propose`, which is not called in such a step."""
        self.propose(speculation, token_ids, limit=limit, num_tokens=num_tokens, num_seqs=num_seqs)
        found = bool(speculation.draft)
        speculation.drop()
        return found

    def settle(self, speculation: Speculation, num_right: int, num_tokens: int) -> None:
        """The step verified the draft, its first `num_right` tokens were right, and the sequence got `num_tokens`: one more
        than that, unless a right guess was its last."""
        source, drafted = speculation.source, len(speculation.draft)
        if source is not None and drafted:
            source.record.learn(drafted, num_right)
            if self.planner is not None and source is speculation.model:
                self.planner.learn(drafted, num_right, num_tokens - 1)
            stats = self.stats.setdefault(source.name, DrafterStats())
            stats.verifications += 1
            stats.drafted += drafted
            stats.accepted += num_right
        speculation.drop()
