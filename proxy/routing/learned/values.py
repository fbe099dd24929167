"""What a judge of answers is told, and what it says. Knows neither files nor models."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class Evidence(msgspec.Struct, frozen=True):
    """What the tier that wrote an answer, or its beginning, tells of it.

    Attributes:
        prompt_tokens: with the template's.
        chosen: natural log-probability of each token written [T], the one that ended it left out.
        best: of each [T], the log-probabilities of up to five best tokens, best first.
        finished: the answer has come to its end.
    """

    prompt_tokens: int
    chosen: Sequence[float]
    best: Sequence[Sequence[float]]
    finished: bool

    def beginning(self, tokens: int) -> "Evidence":
        """What was known when so many tokens had been written, or it ended before; 0: all of it."""
        if not tokens or len(self.chosen) < tokens:
            return self
        return Evidence(self.prompt_tokens, self.chosen[:tokens], self.best[:tokens], False)


class Question(msgspec.Struct, frozen=True):
    """What is known before anybody answers.

    Attributes:
        text: the last message of the user, or the prompt that is none of a chat.
        vector: the embedding of that text, when the server has an embedder.
    """

    text: str
    vector: Sequence[float] | None = None

    @classmethod
    def of_messages(
        cls, messages: Sequence[Mapping[str, Any]], vector: Sequence[float] | None = None
    ) -> "Question":
        """Of a conversation as OpenAI's API has it; of content in parts, the texts count."""
        contents = [message.get("content") for message in messages if message.get("role") == "user"]
        last = contents[-1] if contents else ""
        if isinstance(last, list):
            last = "\n".join(str(part.get("text", "")) for part in last if isinstance(part, dict))
        return cls(str(last or ""), vector)


class Verdict(msgspec.Struct, frozen=True):
    """Attributes:
    accept: the small tier's answer is good enough.
    probability: that it loses nothing against the large tier's, estimated.
    needed: the probability from which on it is accepted; above 1 where nothing is.
    reasons: names of what spoke most for the verdict, the strongest first.
    """

    accept: bool
    probability: float
    needed: float
    reasons: tuple[str, ...]


class Promise(msgspec.Struct, frozen=True):
    """Attributes:
    quality: of the questions that the large tier answers right, at least this share stays right.
    needed: the probability from which on the small tier is good enough for that.
    """

    quality: float
    needed: float
