"""Which tokens may come next where an output must obey a grammar, by llguidance: it compiles in milliseconds and masks in
tens of microseconds. Knows tokens by their bytes, and no text.
"""

import json
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidRequestError
from .drafters import DrafterName
from .grammar import Grammar

# Compiled grammars kept for requests with the same one.
MAX_COMPILED = 64


class Matcher:
    """Where one output stands in its grammar. Its tokens are given to it one by one, and may be taken back.

    Attributes:
        failure: why the grammar cannot be followed any further: some small ones (`c{1000000}`) exceed llguidance's limits
            of work at their first token. None as long as it can. From then on every token may come next.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self.failure: str | None = None

    @property
    def is_complete(self) -> bool:
        """Nothing but the end of the text may follow."""
        return bool(self._matcher.is_stopped())

    def is_complete_after(self, token_ids: list[int]) -> bool:
        """Whether nothing but the end may follow these tokens, all of which must be valid."""
        self.advance(token_ids)
        complete = self.is_complete
        self._take_back(len(token_ids))
        return complete

    def copy(self) -> "Matcher":
        return Matcher(self._matcher.deep_copy(), self._vocab_size)

    def advance(self, token_ids: list[int]) -> None:
        if token_ids and not self.failure and not self._matcher.consume_tokens(token_ids):
            self.failure = self._matcher.get_error().strip().splitlines()[0]

    def num_valid(self, token_ids: list[int]) -> int:
        """How many of the tokens could follow in turn."""
        return int(self._matcher.validate_tokens(token_ids))

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as the grammar alone decides them."""
        return list(self._matcher.compute_ff_tokens())

    def masks(self, draft: list[int]) -> list[Tensor]:
        """[V] bool of the tokens that may come next, and after each token of `draft`, all of which must be valid."""
        masks = [self._mask()]
        for token_id in draft:
            self.advance([token_id])
            masks.append(self._mask())
        self._take_back(len(draft))
        return masks

    def _take_back(self, num_tokens: int) -> None:
        if num_tokens and not self.failure:
            self._matcher.rollback(num_tokens)

    def _mask(self) -> Tensor:
        if self.failure:
            return torch.ones(self._vocab_size, dtype=torch.bool)
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)


class ForcedTokens:
    """Guesses what the grammar forces: the punctuation and the keys of a JSON object, mostly."""

    name: DrafterName = "grammar"

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def propose(self, token_ids: list[int], limit: int) -> list[int]:
        return self._matcher.forced()[:limit]


class GrammarCompiler:
    """Compiles in a thread of its own, so that no step waits for it.

    Args:
        folder: where the model's tokenizer.json lies.
        vocab_size: of the model; its tokenizer may know fewer tokens.
        eos_token_ids: what ends a text.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._file = folder / "tokenizer.json"
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._tokenizer: Any = None
        self._compiled: OrderedDict[Grammar, Matcher] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, "penstock-grammar")

    def compile(self, grammar: Grammar) -> "Future[Matcher]":
        """A matcher at the beginning; InvalidRequestError where the grammar is wrong, with the reason."""
        known = self._compiled.get(grammar)
        if known is not None:
            self._compiled.move_to_end(grammar)
            ready: Future[Matcher] = Future()
            ready.set_result(known.copy())
            return ready
        return self._thread.submit(self._compile, grammar)

    def keep(self, grammar: Grammar, matcher: Matcher) -> None:
        """A matcher that nobody has advanced, for the next request."""
        self._compiled[grammar] = matcher.copy()
        if len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)

    def _compile(self, grammar: Grammar) -> Matcher:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._known_tokenizer(grammar), _as_llguidance(grammar), log_level=0)
            error = matcher.get_error() if matcher.is_error() else ""
        except ValueError as problem:
            error = str(problem)
        if error:
            for part in grammar.parts:
                self._compile(part)  # whichever is wrong is named
            reason = error.strip().splitlines()[0]
            what = grammar.param or f"The {grammar.kind}"
            raise InvalidRequestError(f"{what} cannot be compiled: {reason}", param=grammar.field)
        return Matcher(matcher, self._vocab_size)

    def _known_tokenizer(self, grammar: Grammar) -> Any:
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            if not self._file.is_file():
                raise InvalidRequestError(
                    f"{self._file.parent.name} has no tokenizer.json, which grammars need.",
                    param=grammar.field,
                )
            self._tokenizer = LLTokenizer(
                str(self._file), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
            )
        return self._tokenizer


def _as_llguidance(grammar: Grammar) -> str:
    """The list of grammars that the library takes: the whole first, then its parts by name."""
    from llguidance import LLMatcher

    grammars = []
    for place, each in enumerate((grammar, *grammar.parts)):
        if each.kind == "json_schema":
            body = {"json_schema": json.loads(each.source)}
        elif each.kind == "lark":
            body = {"lark_grammar": each.source}
        else:
            body = json.loads(LLMatcher.grammar_from_regex(each.source))["grammars"][0]
        grammars.append({**body, "name": f"part{place - 1}" if place else "whole"})
    return json.dumps({"grammars": grammars})
