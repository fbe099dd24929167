"""What one try at answering a request is within a learned route: judged, or with a guess at hand, or of what was kept only.

Knows neither wire formats nor engines.
"""

from typing import TYPE_CHECKING

import msgspec

from ...errors import PenstockError

if TYPE_CHECKING:
    from ..routing.learned import Verdict
    from .trial import Trial


class Guess(msgspec.Struct, frozen=True):
    """What the answer is likely to be, as another tier wrote it.

    Attributes:
        token_ids: of `text` by the tokenizer with the fingerprint `tokenizer`; None of an upstream's.
    """

    text: str
    token_ids: list[int] | None = None
    tokenizer: str | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    trial: judges the answer before anything of it is sent; None: it is sent.
    guess: verified as a draft, so that it changes nothing but the time.
    only_kept: nothing is computed: what was not kept raises NotKeptError.
    unseen: nobody waits for it: it comes last in the engine, and in no figure of answers.
    """

    trial: "Trial | None" = None
    guess: Guess | None = None
    only_kept: bool = False
    unseen: bool = False


PLAIN = Attempt()


class NotKeptError(PenstockError):
    """Never on the wire: the walk goes on."""


class EscalatedError(PenstockError):
    """Never on the wire: the answer was judged not good enough, and the next tier is asked.

    `guess`: what was written of it.
    """

    def __init__(self, verdict: "Verdict", guess: Guess) -> None:
        super().__init__("The answer of the small tier was judged not good enough.")
        self.verdict = verdict
        self.guess = guess
