"""Tokens into text as they come: only whole characters leave, and nothing at or past a stop string."""

from collections.abc import Sequence
from typing import Protocol

from .outputs import Chunk, Delta
from .sampling_params import SamplingParams

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character is at most 4 bytes, hence at most 4 tokens of a byte-level vocabulary. Text that still ends in a
# replacement character after as many tokens is really undecodable, and waiting longer would stall the stream.
MAX_HELD_TOKENS = 4


class TextTokenizer(Protocol):
    """What is needed of a tokenizer here."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int]) -> str: ...


class Detokenizer:
    """The text of one completion, piece by piece.

    A token's text depends on its neighbours (spaces, bytes of one character), so each piece is the difference between two
    decodings: of a few settled tokens, and of the same with the new ones behind them.
    """

    def __init__(self, tokenizer: TextTokenizer, params: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._stop = params.stop
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._settled: list[int] = []
        self._settled_text = ""
        self._fresh: list[int] = []
        self._held = ""

    def push(self, delta: Delta) -> Chunk:
        """The chunk for one delta. After a chunk with a finish_reason nothing more may be pushed."""
        ends = delta.finish_reason is not None
        in_text = delta.token_ids if delta.stop_token_id is None else delta.token_ids[:-1]
        text = self._held + self._decode(in_text, flush=ends)
        chunk = Chunk(
            delta.index,
            text,
            delta.token_ids,
            delta.logprobs,
            delta.finish_reason,
            delta.stop_token_id if delta.stop_token_id in self._stop_token_ids else None,
            delta.num_cached_tokens,
        )
        if not self._stop:
            return chunk
        at, match = min(((text.find(stop), stop) for stop in self._stop if stop in text), default=(-1, ""))
        if match:
            chunk.text = text[:at]
            chunk.finish_reason, chunk.stop_reason = "stop", match
        elif not ends:
            held = self._possible_stop_length(text)
            chunk.text = text[: len(text) - held]
            self._held = text[len(text) - held :]
        return chunk

    def _decode(self, token_ids: list[int], *, flush: bool) -> str:
        if not token_ids and not (flush and self._fresh):
            return ""
        self._fresh += token_ids
        whole = self._tokenizer.decode(self._settled + self._fresh)
        if whole.endswith(REPLACEMENT) and not flush and len(self._fresh) < MAX_HELD_TOKENS + len(token_ids) - 1:
            return ""
        piece = whole[len(self._settled_text) :]
        self._settled, self._fresh = self._fresh, []
        self._settled_text = self._tokenizer.decode(self._settled)
        return piece

    def _possible_stop_length(self, text: str) -> int:
        """Length of the longest end of `text` that could be the beginning of a stop string."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
