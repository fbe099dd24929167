"""Which questions are for what: to distil from, to make a router with, or for the check at the end; never for two."""

from collections.abc import Sequence

import msgspec
import xxhash

from ...compress.texts import Example
from ...errors import TuneError

# Shares of the groups. A router needs hundreds, whatever there is to distil from.
DISTIL, ROUTER = 0.5, 0.35
# Of questions nearly the same, one is counted.
FEWEST = 400
# Not the hash that splits what is distilled from, nor the router's: each would find its own part on one side.
_SEED = 0xF1


class Parts(msgspec.Struct, frozen=True):
    distil: list[Example]
    router: list[Example]
    check: list[Example]


def split(examples: Sequence[Example], groups: Sequence[str], *, distils: bool) -> Parts:
    """By the hash of their group. `distils`: whether there is anything to distil.

    Raises TuneError where there are too few.
    """
    if (count := len(set(groups))) < FEWEST:
        raise TuneError(
            f"{count} different questions are left, and {FEWEST} are needed, better some thousands: to distil from, to make "
            "a router with, and to check both. Serve with cache_prompts = true, so that what is asked is kept, and wait for "
            "more traffic."
        )
    parts = Parts([], [], [])
    for example, group in zip(examples, groups, strict=True):
        place = xxhash.xxh3_64_intdigest(group.encode(), seed=_SEED) / 2**64
        if not distils:
            place = DISTIL + (1 - DISTIL) * place
        part = parts.distil if place < DISTIL else parts.router if place < DISTIL + ROUTER else parts.check
        part.append(example)
    return parts
