"""The serving model as the cache's embedder: no other model is installed or held in memory for it.

A question's vector is the model's final hidden state where its answer would begin, the question being all that it was
asked. Such states have most of their length in common whatever was asked, so that everything would be near everything:
the mean state of questions on unlike subjects is taken off first.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xxhash

from ..errors import ConfigError
from .backend import Backend

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# No tenant can be called so. All texts are its: they share the engine as one tenant's requests do.
TENANT = ":embedder"
# Sixty sentences in their place change the areas that bench/engine_embedder.py measures by less than 0.01.
UNLIKE = (
    "How do I boil an egg?",
    "What is the capital of Portugal?",
    "Why does my code raise a null pointer exception?",
    "Write a poem about the sea in winter.",
    "How many days of leave do I have left?",
    "Translate 'good morning' into Japanese.",
    "What is the square root of 144?",
    "List all files changed since yesterday.",
    "Who painted the Mona Lisa?",
    "My parcel has not arrived. What should I do?",
    "Explain photosynthesis to a child.",
    "Is it safe to take ibuprofen with alcohol?",
    "Summarize the meeting in three sentences.",
    "Which laptop should a student buy?",
    "How do I reset my password?",
    "Convert 5 miles to kilometres.",
    "What does this error message mean?",
    "Plan a weekend in Prague for two.",
    "How does a heat pump work?",
    "Can I cancel my subscription at any time?",
    "Give me a regular expression for dates.",
    "What happened in 1989?",
    "How should I prepare for a job interview?",
    "Turn off the lights in the kitchen.",
)


class EngineEmbedder:
    """Fulfils `cache.embedder.Embedder`, once `backend` is ready; `check` first."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._in_common: NDArray[np.float32] | None = None

    def check(self) -> None:
        """Raises ConfigError where the cache's index cannot take the model's states."""
        from ..cache.semantic import MIN_DIMS

        info = self._backend.engine.info
        remedy = "set embedding_model to 'auto', 'none', or the folder or hub id of an embedding model."
        if not info.hidden_size:
            raise ConfigError(
                f"embedding_model is 'engine', but {info.architecture} keeps its hidden states to itself; {remedy}",
                param="embedding_model",
            )
        if info.hidden_size < MIN_DIMS:
            raise ConfigError(
                f"embedding_model is 'engine', but the hidden states of {info.name} have {info.hidden_size} numbers, and "
                f"the cache compares vectors of at least {MIN_DIMS}; {remedy}",
                param="embedding_model",
            )

    @property
    def dims(self) -> int:
        return self._backend.engine.info.hidden_size

    @property
    def fingerprint(self) -> str:
        own = (self._backend.engine.info.fingerprint, self._backend.tokenizer.fingerprint, *UNLIKE)
        return f"engine-{xxhash.xxh3_128_hexdigest(chr(0).join(own).encode())}"

    async def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """[n, dims], each of length 1. Raises as `AsyncEngine.generate`."""
        import numpy as np

        if not texts:
            return np.empty((0, self.dims), np.float32)
        if self._in_common is None:
            self._in_common = (await self._states(UNLIKE)).mean(axis=0)
        vectors = await self._states(texts) - self._in_common
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    async def _states(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """One after the other: a crowd of texts is not to fill the engine's queue."""
        import numpy as np

        state_of = self._backend.engine.hidden_state
        return np.stack([await state_of(self._prompt(text), tenant=TENANT) for text in texts])

    def _prompt(self, text: str) -> list[int]:
        """The text as a user's only message, cut at its end where the model reads no more."""
        most = self._backend.engine.info.max_model_len - 1
        while len(token_ids := self._encoded(text)) > most and text:
            text = text[: min(len(text) - 1, len(text) * most // len(token_ids))]
        return token_ids[:most]

    def _encoded(self, text: str) -> list[int]:
        tokenizer = self._backend.tokenizer
        if tokenizer.chat_template is None:
            return tokenizer.encode(text)
        return tokenizer.encode_chat([{"role": "user", "content": text}])
