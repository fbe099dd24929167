"""How many guessed tokens a sequence's next step verifies: as many as pay for themselves, none where steps are full already.

A draft of k tokens that are each right with probability p, as long as those before were, yields p + p^2 + ... + p^k tokens
more and makes the step longer for everyone in it. Both are measured: p per sequence and drafter, from the guesses it made;
the time of a step per number of tokens (`step_times.py`). Token ids and times only; the output never depends on any of it.
"""

from dataclasses import dataclass, field

from .drafters import Drafter, DrafterName
from .outputs import DrafterStats
from .step_times import StepTimes

# Lengths that are tried; the last is the longest draft of one step.
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# What is believed of a drafter before it has guessed: so many guesses, of which this share was right.
PRIORS: dict[DrafterName, tuple[float, float]] = {
    "draft": (8.0, 0.9),
    "grammar": (8.0, 0.9),
    "ngram": (2.0, 0.5),
}
# Older guesses count this much less with every draft that is verified.
FADING = 0.85
# Where no draft pays, guesses are still compared with what came, once in so many tokens: drafters may get better.
SHADOW_EVERY = 4
# Without a measurement: what another row costs, as a share of a step of one.
ROW_COST = 1 / 16
# A draft must promise this much more than the step loses by it: estimates are noisy, and a step that is too long is certain.
MARGIN = 1.1


@dataclass(slots=True)
class Guesser:
    """A drafter of one sequence, and how often it was right."""

    drafter: Drafter
    right: float = 0.0
    guessed: float = 0.0
    # What it would have guessed in a step that verified nothing: tells whether it has become worth trying.
    unverified: int | None = None

    def __post_init__(self) -> None:
        weight, share = PRIORS[self.drafter.name]
        self.right, self.guessed = weight * share, weight

    @property
    def acceptance(self) -> float:
        """Probability that a guess is right where those before it were."""
        return min(self.right / self.guessed, 0.995)

    def learn(self, num_guessed: int, num_right: int) -> None:
        # What follows the first wrong guess was conditioned on it and tells nothing.
        trials = min(num_right + 1, num_guessed)
        self.right = FADING * self.right + num_right
        self.guessed = FADING * self.guessed + trials


@dataclass(slots=True)
class Speculation:
    """The drafters of one sequence, best first, and the draft that its next step verifies.

    `after_prompt`: the step that computes the prompt's end verifies nothing, since its rows are attended to another way.
    """

    guessers: list[Guesser]
    after_prompt: bool = False
    draft: list[int] = field(default_factory=list)
    source: Guesser | None = None

    def drop(self) -> None:
        self.draft, self.source = [], None


class Speculator:
    """Gives sequences their drafts and learns from what became of them."""

    def __init__(self, times: StepTimes) -> None:
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
                guesser.learn(1, int(guesser.unverified == token_ids[-1]))
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

    def settle(self, speculation: Speculation, num_accepted: int) -> None:
        """The step verified the draft, and its first `num_accepted` tokens were right."""
        source = speculation.source
        if source is not None:
            drafted = len(speculation.draft)
            source.learn(drafted, num_accepted)
            stats = self.stats.setdefault(source.drafter.name, DrafterStats())
            stats.verifications += 1
            stats.drafted += drafted
            stats.accepted += num_accepted
        speculation.drop()


def draft_length(times: StepTimes, acceptance: float, limit: int, num_tokens: int, num_seqs: int) -> int:
    """The draft length that gains most tokens over what the same time would yield without it; 0 where none gains."""
    step = times.seconds(num_tokens)
    best, best_gain = 0, 0.0
    expected, power, length = 0.0, 1.0, 0
    for tried in LENGTHS:
        if tried > limit:
            break
        while length < tried:
            power *= acceptance
            expected += power
            length += 1
        if step:
            longer = times.seconds(num_tokens + tried) or step
            lost = num_seqs * max(longer - step, 0.0) / step
        else:
            lost = num_seqs * tried * ROW_COST
        gain = expected - MARGIN * lost
        if gain <= best_gain:
            break  # what is promised grows ever more slowly
        best, best_gain = tried, gain
    return best
