"""What may be made of a near hit under each set of guards."""

from typing import get_args

import pytest

from penstock.cache import CompletionCache
from penstock.cache.near import Near
from penstock.cache.trust.guards import DEFAULT_GUARDS, GUARD_SETS
from penstock.cache.trust.ruling import MAX_TRUSTED_CHARACTERS, candidate_of, refusal
from penstock.cache.values import CachedChoice, CachedCompletion, Neighbour, Question
from penstock.config import TABLE, Settings
from penstock.proxy.server import near_hits as from_settings
from penstock.scheduler import AsyncEmbedder


def neighbour(text: str) -> Neighbour:
    question = Question(b"partition", b"family", text, "", "")
    completion = CachedCompletion([CachedChoice("An answer.", [1], "stop", None, None)], 9, 0.1)
    return Neighbour(b"place of 64 bits", 0.95, question, completion, 1.0)


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        ("how do i freeze my card", {"strict": "word"}),
        ("how do i block my card in Oslo", {"lean": "entity", "strict": "entity"}),
        ("how do i block 2 cards", {"bare": "number", "lean": "number", "strict": "number"}),
        ("how can i block my card?", {}),
    ],
)
def test_guards_decide_what_the_policy_sees(other, refused):
    for guards in GUARD_SETS:
        candidate = candidate_of("how do i block my card", [neighbour(other)], guards)
        assert candidate.refused == refused.get(guards)
        assert (candidate.observation is None) is (guards in refused)


@pytest.mark.parametrize("guards", GUARD_SETS)
def test_what_is_too_long_to_tell_is_refused_by_every_set(guards):
    text = "x" * (MAX_TRUSTED_CHARACTERS + 1)
    assert refusal(text, text, guards) == "length"


def test_the_setting_offers_the_same_sets():
    assert get_args(TABLE["cache_guards"].type) == GUARD_SETS
    assert Settings().cache_guards == DEFAULT_GUARDS


@pytest.mark.parametrize(("guards", "reason"), [("lean", "cold"), ("strict", "word")])
async def test_the_setting_reaches_the_ruling(tmp_path, guards, reason):
    with CompletionCache(tmp_path / "cache") as cache:
        near_hits = from_settings(Settings(cache_guards=guards), cache, AsyncEmbedder("none is asked"))
        asked = neighbour("how do i block my card").question
        ruling = await near_hits.rule(Near(asked, neighbours=(neighbour("how do i freeze my card"),)))
    assert ruling.reason == reason
