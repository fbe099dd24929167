"""Tokens into text as they come: only whole characters leave, and nothing at or past a stop string."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from .outputs import Chunk, Delta
from .sampling_params import SamplingParams

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character of 4 bytes lacks at most its last one: unfinished, it reads as 1 replacement character or as one per byte.
MAX_UNFINISHED = 3
# After as many tokens that end in no whole character the bytes are garbage, and decoding them again with every token
# would be quadratic.
MAX_HELD_TOKENS = 64


class TextTokenizer(Protocol):
    """What is needed of a tokenizer here."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, shown: frozenset[int] = ...) -> str:
        """`shown`: special tokens to be written too; never given where there are none."""


class Detokenizer:
    """The text of one completion, piece by piece.

    A token's text depends on its neighbours (spaces, bytes of one character), so each piece is the difference between two
    decodings: of a few settled tokens, and of the same with the new ones behind them.
    """

    def __init__(self, tokenizer: TextTokenizer, params: SamplingParams) -> None:
        shown = frozenset(params.shown_token_ids)
        self._text_of = partial(tokenizer.decode, shown=shown) if shown else tokenizer.decode
        self._no_stop_after = params.no_stop_after
        self._stop = params.stop
        if params.stop and params.no_stop_after is not None:
            self._stop += (params.no_stop_after,)
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._settled: list[int] = []
        self._fresh: list[int] = []
        self._shown = ""  # of the text of both
        self._held = ""

    def push(self, delta: Delta) -> Chunk:
        """The chunk for one delta. After a chunk with a finish_reason nothing more may be pushed."""
        ends = delta.finish_reason is not None
        in_text = delta.token_ids if delta.stop_token_id is None else delta.token_ids[:-1]
        chunk = Chunk(
            delta.index,
            "",
            delta.token_ids,
            delta.logprobs,
            delta.finish_reason,
            delta.stop_token_id if delta.stop_token_id in self._stop_token_ids else None,
            delta.num_cached_tokens,
            delta.queue_seconds,
            delta.hidden_state,
        )
        if not self._stop:
            chunk.text = self._decode(in_text, flush=ends)
            return chunk
        # Token by token, so that what belongs to a completion does not depend on how its tokens were bundled.
        for count, token_id in enumerate(in_text, 1):
            self._held += self._decode([token_id], flush=False)
            if self._cut(chunk, count):
                return chunk
        if ends:
            self._held += self._decode([], flush=True)
            if not self._cut(chunk, len(delta.token_ids)):
                chunk.text += self._held
        return chunk

    def _cut(self, chunk: Chunk, count: int) -> bool:
        """End the chunk before a stop string, with its first `count` tokens; or release what can be none."""
        text = self._held
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            at, match = min(found)
            if match == self._no_stop_after:
                self._stop, self._held = (), ""
                chunk.text += text
                return False
            chunk.text += text[:at]
            chunk.token_ids = chunk.token_ids[:count]
            chunk.logprobs = chunk.logprobs and chunk.logprobs[:count]
            chunk.finish_reason, chunk.stop_reason = "stop", match
            return True
        safe = len(text) - self._possible_stop_length(text)
        chunk.text += text[:safe]
        self._held = text[safe:]
        return False

    def _decode(self, token_ids: list[int], *, flush: bool) -> str:
        """The text that is certain now: all but an unfinished character at the end."""
        held = len(self._fresh)
        self._fresh += token_ids
        if not self._fresh:
            return ""
        whole = self._text_of(self._settled + self._fresh)
        if whole.endswith(REPLACEMENT) and not flush and held < MAX_HELD_TOKENS:
            if not whole.startswith(self._shown):
                return ""  # some tokenizers give up a whole run of bytes for its unfinished end
            certain = max(len(whole.rstrip(REPLACEMENT)), len(whole) - MAX_UNFINISHED, len(self._shown))
            piece, self._shown = whole[len(self._shown) : certain], whole[:certain]
            return piece
        piece = whole[len(self._shown) :]
        fresh, self._fresh = self._fresh, []
        if text := self._text_of(fresh):  # tokens without text are no context for the next
            self._settled, self._shown = fresh, text
        return piece

    def _possible_stop_length(self, text: str) -> int:
        """Length of the longest end of `text` that could be the beginning of a stop string."""
        longest = min(len(text), max(map(len, self._stop), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
