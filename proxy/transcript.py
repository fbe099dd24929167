"""All choices of one response, gathered chunk by chunk: for a body, for usage, and for the cache."""

import msgspec

from ..cache import CachedChoice, CachedCompletion
from ..scheduler.outputs import Chunk, FinishReason, TokenLogprob
from .prediction import PredictionCount
from .thought_tokens import ThoughtTokens
from .usage import Usage


class Choice(msgspec.Struct):
    """One choice so far."""

    texts: list[str] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    prediction: PredictionCount | None = None

    def add(self, chunk: Chunk) -> None:
        if self.prediction is not None:
            self.prediction.add(chunk.token_ids)
        self.texts.append(chunk.text)
        self.token_ids.extend(chunk.token_ids)
        self.logprobs.extend(chunk.logprobs or ())
        self.finish_reason = chunk.finish_reason
        self.stop_reason = chunk.stop_reason
        self.num_cached_tokens = max(self.num_cached_tokens, chunk.num_cached_tokens)

    def as_chunk(self, index: int, *, with_logprobs: bool) -> Chunk:
        return Chunk(
            index=index,
            text="".join(self.texts),
            token_ids=self.token_ids,
            logprobs=self.logprobs if with_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


class Transcript:
    """Choices are ordered by prompt, then by sample: prompt p's are p*n .. p*n+n-1.

    Args:
        prompt_tokens: tokens of all prompts.
        num_prompts, n: how many choices there will be.
        with_logprobs: whether the request wants log-probabilities.
        prediction: what every choice was predicted to be, in tokens; None for no prediction.
        thoughts: what thoughts are counted by; None for what is not counted.
    """

    def __init__(
        self,
        *,
        prompt_tokens: int,
        num_prompts: int,
        n: int,
        with_logprobs: bool,
        prediction: list[int] | None = None,
        thoughts: ThoughtTokens | None = None,
    ) -> None:
        self.choices = [
            Choice(prediction=None if prediction is None else PredictionCount(prediction))
            for _ in range(num_prompts * n)
        ]
        self._prompt_tokens = prompt_tokens
        self._n = n
        self._with_logprobs = with_logprobs
        self._thoughts = thoughts
        self._unfinished = len(self.choices)

    @property
    def finished(self) -> bool:
        return self._unfinished == 0

    @property
    def usage(self) -> Usage:
        """Prompts are counted once, however many samples they have."""
        predicted = [choice.prediction for choice in self.choices if choice.prediction is not None]
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(len(choice.token_ids) for choice in self.choices),
            cached_tokens=sum(choice.num_cached_tokens for choice in self.choices[:: self._n]),
            accepted_prediction_tokens=sum(count.accepted for count in predicted) if predicted else None,
            rejected_prediction_tokens=sum(count.rejected for count in predicted) if predicted else None,
            reasoning_tokens=None
            if self._thoughts is None
            else sum(self._thoughts.count(choice.token_ids) for choice in self.choices),
        )

    def add(self, batch: list[Chunk]) -> None:
        for chunk in batch:
            self.choices[chunk.index].add(chunk)
            self._unfinished -= chunk.finish_reason is not None

    def as_chunks(self) -> list[Chunk]:
        """Each choice as one whole chunk."""
        return [
            choice.as_chunk(index, with_logprobs=self._with_logprobs)
            for index, choice in enumerate(self.choices)
        ]

    def cacheable(self, *, engine_seconds: float) -> CachedCompletion | None:
        """The form the cache keeps; None unless every choice ended by itself (not cut at `max_tokens`)."""
        if not all(choice.finish_reason == "stop" for choice in self.choices):
            return None
        return CachedCompletion(
            choices=[
                CachedChoice(
                    text=chunk.text,
                    token_ids=chunk.token_ids,
                    finish_reason="stop",
                    stop_reason=chunk.stop_reason,
                    logprobs=None
                    if chunk.logprobs is None
                    else [(token.token_id, token.logprob, token.top) for token in chunk.logprobs],
                )
                for chunk in self.as_chunks()
            ],
            prompt_tokens=self._prompt_tokens,
            engine_seconds=engine_seconds,
        )


def replayed(completion: CachedCompletion, *, prompt_tokens: int | None = None) -> list[Chunk]:
    """The kept completion as the chunks of a response: one per choice. `prompt_tokens`: of the prompt it now answers;
    None where that is its own."""
    computed_before = completion.prompt_tokens if prompt_tokens is None else prompt_tokens
    return [
        Chunk(
            index=index,
            text=choice.text,
            token_ids=choice.token_ids,
            logprobs=None if choice.logprobs is None else [TokenLogprob(*token) for token in choice.logprobs],
            finish_reason="stop",
            stop_reason=choice.stop_reason,
            # Nothing was computed for any of the prompts; the figure is one for all of them.
            num_cached_tokens=0 if index else computed_before,
        )
        for index, choice in enumerate(completion.choices)
    ]
