"""What goes into the cache and what comes out. Knows nothing of keys, files or time."""

from typing import Any

import msgspec


class CachedChoice(msgspec.Struct, array_like=True):
    """One finished choice in its neutral form: streamed and unstreamed replies are both built from it."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None
    logprobs: list[tuple[int, float, list[tuple[int, float]]]] | None
    """Per token: token id, log-probability, and the likeliest alternatives as (token id, log-probability)."""
    wire: bytes | None = None
    """Of the first choice, where another server answered: all of that answer, in JSON of its API."""


class CachedCompletion(msgspec.Struct, array_like=True):
    """Everything needed to answer a request again without the engine."""

    choices: list[CachedChoice]
    prompt_tokens: int
    engine_seconds: float
    """What computing it took: what a hit saves."""

    @classmethod
    def of_text(cls, text: str, *, seconds: float = 0.0) -> "CachedCompletion":
        """One choice that ended by itself, of a model whose tokens are not known; `seconds` that it took."""
        return cls([CachedChoice(text, [], "stop", None, None)], 0, seconds)


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What a completion answers, as far as a question that is put otherwise is compared with it."""

    partition: bytes
    """Everything that must be equal before meanings are compared; `partition_key` makes it."""
    family: bytes
    """Whose near hits teach what can be trusted of its own; `family_key` makes it."""
    text: str
    """The last user turn."""
    before: str
    after: str
    """What stands around it in the prompt that the model read, the nearest of it."""

    @property
    def excerpt(self) -> str:
        """Of the prompt, as much as is kept."""
        return self.before + self.text + self.after


class WholePrompt(msgspec.Struct, frozen=True, array_like=True):
    """All that was asked, where an operator keeps it: for models to learn from; no request is answered by it."""

    model: str
    """Who answered, by its name."""
    messages: list[dict[str, Any]] | None = None
    """Of a conversation, as chat templates read them; None of a text."""
    text: str = ""
    tools: list[dict[str, Any]] | None = None
    begun: str = ""
    """What the chat template had written of the answer already: what opens its thoughts."""


class CacheHit(msgspec.Struct, frozen=True):
    completion: CachedCompletion
    age: float
    """Seconds since it was stored."""


class Neighbour(msgspec.Struct, frozen=True):
    """A kept completion whose question means nearly the same."""

    place: bytes
    """Where it lies, as in CacheKey."""
    similarity: float
    """Cosine of the two questions' embeddings."""
    question: Question
    completion: CachedCompletion
    age: float
    """Seconds since it was stored."""


class CacheStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot: sizes of the file all processes share, counters of this process since it opened it."""

    entries: int
    used_bytes: int
    """Pages that hold live data: what `max_bytes` limits."""
    max_bytes: int
    file_bytes: int
    """The file's length. It keeps freed pages for later entries, so it shrinks only by compaction."""
    hits: int
    misses: int
    collisions: int
    """Misses because another request has the same xxh3 hash."""
    damaged: int
    """Misses because the stored bytes did not match their checksum or their type."""
    stored: int
    dropped: int
    """Stores given up: queue full, entry too large, or the file could not be written."""
    evicted: int
    expired: int
    """Entries removed because their time was over."""
    queued: int
    """Stores accepted and not yet on disk."""
    state: str
    """'on'; 'reading' while the file cannot be written; 'off' after damage; 'closed'; 'forked'."""
