"""How often a drafter was right: the chance that its next guess is. Counts only."""

from dataclasses import dataclass

# No drafter is believed to be right more often: the longest drafts are long enough at that.
MOST = 0.995


@dataclass(slots=True)
class TrackRecord:
    """Guesses and those of them that were right, of which older ones count less.

    Attributes:
        right, guessed: so many, faded.
        fading: what older guesses keep of their weight with every draft that is verified.
        fading_when_lost: the same with one of which nothing was right.
        renewal: what the record begins with again once a guess was wrong, if it is better than that: so many guesses and
            right ones, and the wrong one; None to keep it.
    """

    right: float
    guessed: float
    fading: float = 0.85
    fading_when_lost: float = 0.85
    renewal: tuple[float, float] | None = None

    @property
    def acceptance(self) -> float:
        """Probability that a guess is right where those before it were."""
        return min(self.right / self.guessed, MOST)

    def learn(self, num_guessed: int, num_right: int) -> None:
        # What follows the first wrong guess was conditioned on it and tells nothing.
        trials = min(num_right + 1, num_guessed)
        fading = self.fading if num_right else self.fading_when_lost
        self.right = fading * self.right + num_right
        self.guessed = fading * self.guessed + trials
        if self.renewal is not None and num_right < num_guessed:
            guessed, right = self.renewal
            if self.right * (guessed + 1) > right * self.guessed:
                self.right, self.guessed = right, guessed + 1


def expected_tokens(acceptance: float, length: int) -> float:
    """Right guesses of a draft, each of which is right with this probability as long as those before were."""
    return acceptance * (1 - acceptance**length) / (1 - acceptance)
