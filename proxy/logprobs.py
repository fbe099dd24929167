"""Log-probabilities in the two shapes OpenAI gave them: one for chat, one for completions."""

from collections import defaultdict
from collections.abc import Iterable

import orjson

from ..models.tokenizer import Tokenizer
from ..scheduler.outputs import Chunk, TokenLogprob

# JSON has no minus infinity; vLLM's stand-in for a token that cannot be chosen.
IMPOSSIBLE = -9999.0


class ChatLogprobs:
    """`{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, chunk: Chunk) -> dict[str, object]:
        return {"content": self.entries(chunk), "refusal": None}

    def entries(self, chunk: Chunk) -> list[dict[str, object]]:
        return [self._entry(token) for token in visible(chunk)]

    def encode(self, chunk: Chunk) -> bytes:
        return orjson.dumps(self.of(chunk))

    def _entry(self, token: TokenLogprob) -> dict[str, object]:
        top = [self._token(token_id, logprob) for token_id, logprob in token.top]
        return {**self._token(token.token_id, token.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, object]:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": _text(raw), "logprob": max(logprob, IMPOSSIBLE), "bytes": list(raw)}


class CompletionLogprobs:
    """`{"tokens": [...], "token_logprobs": [...], "top_logprobs": [{...}], "text_offset": [...]}`.

    Offsets count characters of a choice's tokens from its beginning, over all chunks; hence one object per
    response.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def of(self, chunk: Chunk) -> dict[str, object]:
        tokens: list[str] = []
        logprobs: list[float] = []
        top: list[dict[str, float]] = []
        offsets: list[int] = []
        for token in visible(chunk):
            text = self._text(token.token_id)
            tokens.append(text)
            logprobs.append(max(token.logprob, IMPOSSIBLE))
            top.append(self._alternatives(token))
            offsets.append(self._offsets[chunk.index])
            self._offsets[chunk.index] += len(text)
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}

    def encode(self, chunk: Chunk) -> bytes:
        return orjson.dumps(self.of(chunk))

    def _alternatives(self, token: TokenLogprob) -> dict[str, float]:
        # Two ids may read alike; the likelier one, which comes first, keeps the name.
        alternatives: dict[str, float] = {}
        for token_id, logprob in [(token.token_id, token.logprob), *token.top]:
            alternatives.setdefault(self._text(token_id), max(logprob, IMPOSSIBLE))
        return alternatives

    def _text(self, token_id: int) -> str:
        return _text(self._tokenizer.token_bytes(token_id))


def visible(chunk: Chunk) -> Iterable[TokenLogprob]:
    """All but the stop token: it ended the text and is no part of it."""
    logprobs = chunk.logprobs or []
    ended_by_token = chunk.finish_reason == "stop" and not isinstance(chunk.stop_reason, str)
    return logprobs[:-1] if ended_by_token else logprobs


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
