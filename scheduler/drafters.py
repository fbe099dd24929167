"""Who guesses the next tokens of a sequence, so that the model can confirm several of them in one step.

A guess costs a row in a step, never a wrong token: the model computes every position itself, and a guessed token stays only
where it equals the one that is drawn there. Drafters see token ids and nothing else.
"""

from array import array
from collections.abc import Sequence as Tokens
from typing import Literal, Protocol

DrafterName = Literal["draft", "draft_model", "grammar", "ngram"]

# Tokens that must agree before what followed them once is proposed again.
NGRAM = 3
ITEM_BYTES = array("i").itemsize


class Drafter(Protocol):
    """Guesses for one sequence."""

    name: DrafterName

    def propose(self, token_ids: list[int], limit: int) -> list[int]:
        """At most `limit` tokens likely to follow `token_ids` (prompt and output so far); [] for no idea."""


class PromptLookup:
    """What followed the last occurrence of the sequence's last tokens in the sequence itself (prompt lookup decoding).

    Good where an answer repeats its prompt: editing, summaries, code, tables, and loops.
    """

    name: DrafterName = "ngram"

    def __init__(self) -> None:
        self._tokens = array("i")

    def propose(self, token_ids: list[int], limit: int) -> list[int]:
        tokens = self._tokens
        tokens.extend(token_ids[len(tokens) :])
        found = _find_last(tokens, tokens[-NGRAM:], len(tokens) - 1)
        if found is None:
            return []
        # Past the end the repetition is taken to go on repeating.
        period = len(tokens) - found
        return [tokens[found + number % period] for number in range(limit)]


class CompletionDraft:
    """A whole completion that is likely to be given again: a cached answer to a similar question, a text to be edited.

    Follows it while the output agrees. After a difference it goes on where the output's last tokens next occur in it.
    """

    name: DrafterName = "draft"

    def __init__(self, token_ids: Tokens[int], num_prompt_tokens: int) -> None:
        self._draft = array("i", token_ids)
        self._num_seen = num_prompt_tokens
        self._at = 0  # of the draft's token that comes next, or where the output left it
        self._in_step = True

    def propose(self, token_ids: list[int], limit: int) -> list[int]:
        for token_id in token_ids[self._num_seen :]:
            if self._in_step and self._at < len(self._draft) and self._draft[self._at] == token_id:
                self._at += 1
            else:
                self._in_step = False
        self._num_seen = len(token_ids)
        if not self._in_step:
            ngram = array("i", token_ids[-NGRAM:])
            found = _find_first(self._draft, ngram, self._at)
            if found is None:
                found = _find_last(self._draft, ngram, len(self._draft))
            if found is None:
                return []
            self._at, self._in_step = found, True
        return self._draft[self._at : self._at + limit].tolist()


# Searches through bytes: 20 us for 16,384 tokens, and no index to keep.


def _find_last(tokens: "array[int]", ngram: "array[int]", stop: int) -> int | None:
    """Where the last occurrence of `ngram` that ends at or before `stop` ends; None without one."""
    content, needle, end = tokens.tobytes(), ngram.tobytes(), stop * ITEM_BYTES
    while len(ngram) == NGRAM and (at := content.rfind(needle, 0, end)) >= 0:
        if at % ITEM_BYTES == 0:
            return at // ITEM_BYTES + NGRAM
        end = at + len(needle) - 1
    return None


def _find_first(tokens: "array[int]", ngram: "array[int]", start: int) -> int | None:
    """Likewise of the first occurrence that begins at or behind `start`."""
    content, needle, begin = tokens.tobytes(), ngram.tobytes(), start * ITEM_BYTES
    while len(ngram) == NGRAM and (at := content.find(needle, begin)) >= 0:
        if at % ITEM_BYTES == 0:
            return at // ITEM_BYTES + NGRAM
        begin = at + 1
    return None
