"""One answer of a small tier before its judge: held back until it is decided, then sent on or given up.

The judge sees the log-probabilities of the tokens, whether or not the client wants any; the client sees what it asked for.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from ...scheduler.outputs import Chunk
from ..logprobs import visible
from ..routing.learned import Evidence, Question, Verdict
from .attempt import EscalatedError, Guess

if TYPE_CHECKING:
    from ...scheduler.sampling_params import SamplingParams
    from ..flight import Source
    from ..routing.learned import Judge

# The best tokens that judges look at, as many as OpenAI's API gives.
TOP = 5


class Trial:
    """Args:
    quality: the promise of the judge's that counts; None: its strictest.
    buffer_tokens: so many tokens are enough to decide; 0: all of the answer is.

    Attributes:
        identity: of the judge.
        verdict: None until it is decided.
        said: by an upstream, whose answer was accepted; None where it was accepted in another trial.
    """

    def __init__(
        self, judge: "Judge", question: Question, *, quality: float | None, buffer_tokens: int, identity: str
    ) -> None:
        self._judge, self._question = judge, question
        self._quality, self._buffer_tokens = quality, buffer_tokens
        self.identity = identity
        self.verdict: Verdict | None = None
        self.said: str | None = None

    def params(self, asked: "SamplingParams") -> "SamplingParams":
        """With what the judge needs to see."""
        return msgspec.structs.replace(asked, logprobs=max(asked.logprobs or 0, TOP))

    def is_due(self, tokens: int) -> bool:
        """Whether so many tokens of an answer that goes on are enough."""
        return 0 < self._buffer_tokens <= tokens

    def decide(self, evidence: Evidence, guess: Guess) -> None:
        """Raises EscalatedError where the answer is not good enough."""
        self.verdict = self._judge.keeps(
            self._question, evidence, self._quality, buffer_tokens=self._buffer_tokens
        )
        if not self.verdict.accept:
            raise EscalatedError(self.verdict, guess)

    async def judged(
        self,
        batches: "Source[list[Chunk]]",
        *,
        prompt_tokens: int,
        tokenizer: str,
        shown: "SamplingParams",
    ) -> AsyncGenerator[list[Chunk], None]:
        """Batches of one completion, from when it is accepted. `shown`: what the client asked for.

        Raises EscalatedError before the first one where it is not.
        """
        async with aclosing(batches):
            held: list[Chunk] = []
            seen = _Seen(tokenizer)
            async for batch in batches:
                held += batch
                seen.add(batch)
                if seen.ended or self.is_due(len(seen.chosen)):
                    break
            self.decide(seen.evidence(prompt_tokens), seen.guess)
            yield _as_asked(held, shown)
            async for batch in batches:
                yield _as_asked(batch, shown)


class _Seen:
    """What has come of an answer."""

    def __init__(self, tokenizer: str) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._best: list[Sequence[float]] = []
        self.chosen: list[float] = []
        self.text = ""
        self.ended = False
        self._stopped = False

    def add(self, batch: list[Chunk]) -> None:
        for chunk in batch:
            self._token_ids += chunk.token_ids
            self.text += chunk.text
            for token in visible(chunk):
                self.chosen.append(token.logprob)
                self._best.append([logprob for _, logprob in token.top[:TOP]])
            if chunk.finish_reason is not None:
                self.ended, self._stopped = True, chunk.finish_reason == "stop"

    @property
    def guess(self) -> Guess:
        return Guess(self.text, self._token_ids, self._tokenizer)

    def evidence(self, prompt_tokens: int) -> Evidence:
        return Evidence(prompt_tokens, self.chosen, self._best, self._stopped)


def _as_asked(batch: list[Chunk], shown: "SamplingParams") -> list[Chunk]:
    return [_trimmed(chunk, shown.logprobs) for chunk in batch]


def _trimmed(chunk: Chunk, logprobs: int | None) -> Chunk:
    """With as many alternatives as were asked for. A new one: those who share a generation share its chunks."""
    if chunk.logprobs is None:
        return chunk
    if logprobs is None:
        return msgspec.structs.replace(chunk, logprobs=None)
    tokens = [msgspec.structs.replace(token, top=token.top[:logprobs]) for token in chunk.logprobs]
    return msgspec.structs.replace(chunk, logprobs=tokens)
