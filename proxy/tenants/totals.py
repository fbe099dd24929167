"""What requests came to, by hour (UTC), tenant, model and what the cache did. Adds up; decides nothing.

Each row sums the records that the access log prints as lines, so that both add up to the same. A month of them is kept. The
accounts (`ledger.py`) count calls of models, for budgets; this counts requests, for `penstock report` and the dashboard.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import msgspec

from .environment import Database, Environment, Transaction

HOURLY = b"hourly"
HOUR = 3600
# A month and some, for reports that look back over one.
KEPT_HOURS = 35 * 24
# Old rows deleted in one transaction: the lock is held for a millisecond, and the rest goes with the next.
_MAX_PRUNED = 2000
_HOUR_BYTES = 4
# LMDB's keys have 511 bytes; a tenant's name takes 64, the rest of the key 20.
_MODEL_BYTES = 400


class Saved(msgspec.Struct, array_like=True):
    """What one lever spared: money, in so many requests of which that is known, and known seconds of the engine.

    `unknown`: requests of which nobody knows the money. (Last: rows of older versions end before it.)
    """

    requests: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    unknown: int = 0

    def merge(self, other: "Saved") -> None:
        self.unknown += other.unknown
        self.requests += other.requests
        self.cost += other.cost
        self.seconds += other.seconds


class Total(msgspec.Struct, array_like=True):
    """Sums over requests that named a model.

    Attributes:
        failed: told an error; aborted: the client left before the end.
        unknown_usage, unknown_cost: answered, and nobody knows the tokens, or the cost; they are in no sum.
        prompt_tokens, cached_tokens, completion_tokens: as the answers' usage says, kept and shared answers included; cached
            ones are those of the prompt whose KV was there.
        cost: money.
        waited_seconds: for engine or upstream, in the queue too.
        saved_seconds: of the engine, spared by answers that were kept.
        saved: by what spared it (`spend.By`).
        alone_tokens, alone_seconds: of `completion_tokens` and `waited_seconds`, those of answers by the only model that was
            asked: what a model takes is told by these, and not by answers that waited for another one first. (Last: rows of
            older versions end before them.)
    """

    requests: int = 0
    failed: int = 0
    aborted: int = 0
    unknown_usage: int = 0
    unknown_cost: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    waited_seconds: float = 0.0
    saved_seconds: float = 0.0
    saved: dict[str, Saved] = {}
    alone_tokens: int = 0
    alone_seconds: float = 0.0

    def merge(self, other: "Total") -> None:
        # One by one, as every request comes by here: a loop over their names takes twice as long.
        self.requests += other.requests
        self.failed += other.failed
        self.aborted += other.aborted
        self.unknown_usage += other.unknown_usage
        self.unknown_cost += other.unknown_cost
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.cost += other.cost
        self.waited_seconds += other.waited_seconds
        self.saved_seconds += other.saved_seconds
        self.alone_tokens += other.alone_tokens
        self.alone_seconds += other.alone_seconds
        for by, more in other.saved.items():
            self.saved.setdefault(by, Saved()).merge(more)


class Place(msgspec.Struct, frozen=True):
    """Of a row. `hour`: since the epoch, in which its requests began. Empty: a `tenant` or `model` that was not known yet;
    the `outcome` of what was no generation, or never became one."""

    hour: int
    tenant: str
    model: str
    outcome: str


class Row(msgspec.Struct, frozen=True):
    place: Place
    total: Total


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Total)


class Totals:
    """The rows of all processes, in one database of `environment`. `written` is told of every change."""

    def __init__(self, environment: Environment, written: Callable[[], None]) -> None:
        self._env = environment
        self._database: Database = environment.databases[HOURLY]
        self._written = written
        self._pruned_hour = 0

    def add(self, totals: Mapping[Place, Total], now: float) -> None:
        """One short transaction, exact among processes. Raises StoreError."""
        with self._env.writing() as txn:
            for place, total in totals.items():
                key = _key(place)
                data = txn.get(key, db=self._database)
                sums = Total() if data is None else _decoder.decode(data)
                sums.merge(total)
                txn.put(key, _encoder.encode(sums), db=self._database)
            self._prune(txn, int(now // HOUR))
        self._written()

    def rows(self, since: float) -> list[Row]:
        """By hour, tenant, model and outcome, from the hour of `since` on."""
        with self._env.reading() as txn:
            return list(self._rows(txn, int(since // HOUR)))

    def _rows(self, txn: Transaction, since_hour: int) -> Iterator[Row]:
        with txn.cursor(self._database) as cursor:
            if cursor.set_range(since_hour.to_bytes(_HOUR_BYTES, "big")):
                for key, value in cursor.iternext():
                    yield Row(_place(key), _decoder.decode(value))

    def _prune(self, txn: Transaction, hour: int) -> None:
        """Once an hour, unless there is more than one transaction should delete."""
        if hour == self._pruned_hour:
            return
        oldest = max(0, hour - KEPT_HOURS).to_bytes(_HOUR_BYTES, "big")
        with txn.cursor(self._database) as cursor:
            for _ in range(_MAX_PRUNED):
                if not cursor.first() or cursor.key() >= oldest:
                    self._pruned_hour = hour
                    return
                cursor.delete()


@lru_cache(maxsize=4096)
def _key(place: Place) -> bytes:
    names = (place.tenant, place.model.replace("\0", " "), place.outcome)
    tenant, model, outcome = (name.encode("utf-8", "replace") for name in names)
    return place.hour.to_bytes(_HOUR_BYTES, "big") + b"\0".join((tenant, model[:_MODEL_BYTES], outcome))


def _place(key: bytes) -> Place:
    tenant, model, outcome = key[_HOUR_BYTES:].decode("utf-8", "replace").split("\0")
    return Place(int.from_bytes(key[:_HOUR_BYTES], "big"), tenant, model, outcome)
