"""Answers of upstreams that are found by the meaning of their questions: looked for, and served where they are trusted.

As the local engine's are, but for drafts, which no upstream takes: what may not be served is only learnt from.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ...cache import Neighbour
from ...cache.near import Mode, NearHits
from ..near_search import NearSearch, mode_of
from .meaning import is_read_by_machines, question_of, tells_logprobs
from .shadows import Shadows

if TYPE_CHECKING:
    from ..answering import Asked


class Trusted(msgspec.Struct, frozen=True):
    """A neighbour whose answer is served. `wire`: that answer; `is_drawn`: it is to be checked with the upstream."""

    neighbour: Neighbour
    wire: bytes
    is_drawn: bool


class NearAnswers:
    """Args:
    hits: of mode "trusted".
    shadows: of what is served and checked.
    """

    def __init__(self, hits: NearHits, shadows: Shadows) -> None:
        self._hits = hits
        self.shadows = shadows

    def mode(self, asked: "Asked") -> Mode:
        logprobs = tells_logprobs(asked.fields)
        return mode_of(self._hits, asked.controls.mode, asked.caller.account, logprobs=logprobs)

    def wants(self, asked: "Asked") -> bool:
        """Whether a search is of use: what is judged, or judges, is the model's very answer."""
        attempt = asked.attempt
        if not self._hits.is_ready or attempt.trial is not None or attempt.unseen:
            return False
        return asked.choices == 1 and self.mode(asked) != "off"

    def search(
        self, asked: "Asked", names: Mapping[str, str], request: Mapping[str, Any]
    ) -> NearSearch | None:
        """Begins one; None where nothing is asked that can be compared. As of `question_of`."""
        question = question_of(names, request, self._hits.fingerprint)
        if question is None:
            return None
        exact = is_read_by_machines(request)
        return NearSearch(self._hits, question, find=asked.controls.read, drafts=False, exact=exact)

    async def trusted(self, asked: "Asked", search: NearSearch) -> Trusted | None:
        """What may be served. What is drawn to be verified is served, too, where it can be checked afterwards; else its
        client waits for the upstream."""
        if self.mode(asked) != "trusted":
            return None
        neighbour, is_drawn = await search.trusted(), False
        # What is not to be kept is not asked for behind its client's back either.
        if neighbour is None and asked.controls.write and self.shadows.may_call:
            neighbour, is_drawn = search.drawn, True
        wire = None if neighbour is None else neighbour.completion.choices[0].wire
        if neighbour is None or wire is None:
            return None
        self.shadows.served(checked=is_drawn)
        return Trusted(neighbour, wire, is_drawn)
