"""What a cache holds, in figures: one pass over its entries. Knows no command line."""

import math
from array import array
from collections import Counter

import msgspec

from .key import SCOPE_BYTES
from .opened import OpenedCache


class Scope(msgspec.Struct, frozen=True):
    """What one namespace of one tenant holds. `scope`: the hashes of both, as places begin with them."""

    scope: bytes
    entries: int
    num_bytes: int


class IndexFigures(msgspec.Struct, frozen=True):
    """`dead`: slots of removed entries, which compaction frees once they are a third of a partition."""

    dims: int
    partitions: int
    trained_partitions: int
    entries: int
    dead: int


class Spread(msgspec.Struct, frozen=True):
    least: float
    p50: float
    p90: float
    p99: float
    most: float


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Ages in seconds, sizes in bytes of an entry's body; None where there are no entries.

    Attributes:
        used_bytes: pages of live data, index included: what the cap limits.
        with_question, with_prompt: entries that were kept with the question they answer, and with the whole prompt.
        expiring, over: entries that have a time to live, and those of them whose time is over already.
        damaged: entries whose bytes do not match their checksum: they are never served.
        engine_seconds: what computing all that is kept took.
    """

    entries: int
    used_bytes: int
    file_bytes: int
    max_bytes: int
    with_question: int
    with_prompt: int
    expiring: int
    over: int
    damaged: int
    engine_seconds: float
    ages: Spread | None
    sizes: Spread | None
    scopes: list[Scope]
    index: IndexFigures | None


def overview(cache: OpenedCache, now: float) -> Overview:
    """Entries are read in chunks (`OpenedCache.entries`): on a busy cache figures are off by what changed meanwhile."""
    ages, sizes = array("d"), array("d")
    entries, num_bytes = Counter[bytes](), Counter[bytes]()
    with_question = with_prompt = expiring = over = damaged = 0
    engine_seconds = 0.0
    for entry in cache.entries():
        record, completion = entry.record, entry.completion
        ages.append(max(0.0, now - record.created))
        sizes.append(len(entry.body))
        entries[entry.place[:SCOPE_BYTES]] += 1
        num_bytes[entry.place[:SCOPE_BYTES]] += len(entry.body)
        with_question += entry.question is not None
        with_prompt += entry.prompt is not None
        expiring += record.expires != math.inf
        over += record.expires <= now
        damaged += completion is None
        engine_seconds += 0.0 if completion is None else completion.engine_seconds
    _, used_bytes, file_bytes = cache.environment.measure()
    return Overview(
        entries=len(ages),
        used_bytes=used_bytes,
        file_bytes=file_bytes,
        max_bytes=cache.max_bytes,
        with_question=with_question,
        with_prompt=with_prompt,
        expiring=expiring,
        over=over,
        damaged=damaged,
        engine_seconds=engine_seconds,
        ages=_spread(ages),
        sizes=_spread(sizes),
        scopes=[Scope(scope, count, num_bytes[scope]) for scope, count in entries.most_common()],
        index=_index_figures(cache),
    )


def _index_figures(cache: OpenedCache) -> IndexFigures | None:
    if cache.index is None:
        return None
    with cache.environment.reading() as txn:
        shapes = list(cache.index.shapes(txn))
    return IndexFigures(
        dims=cache.index.dims,
        partitions=len(shapes),
        trained_partitions=sum(shape.trained for shape in shapes),
        entries=sum(shape.entries for shape in shapes),
        dead=sum(shape.dead for shape in shapes),
    )


def _spread(values: "array[float]") -> Spread | None:
    """By nearest rank."""
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(*(ordered[round(share * last)] for share in (0.0, 0.5, 0.9, 0.99, 1.0)))
