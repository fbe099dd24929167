"""The accounts: what each tenant used, by day (UTC) and model. Adds up; decides nothing.

Sums hold what is known. What is not is counted beside them: `unknown_usage` requests whose tokens nobody knows, and
`unknown_cost` requests without a price or usage, for which `presumed_cost` was taken from the budget.
"""

from collections.abc import Iterator
from functools import lru_cache

import msgspec

from .environment import Database, Transaction
from .spend import Spend
from .window import day_of

# Of requests whose process was killed before they were settled.
UNKNOWN_MODEL = "(unknown)"
_DAY_BYTES = 4
# LMDB's keys have 511 bytes; a tenant's name takes 64, and the day 5.
_MODEL_BYTES = 440


class Saved(msgspec.Struct, array_like=True):
    """What was not spent: money and seconds of the engine, as far as known."""

    cost: float = 0.0
    seconds: float = 0.0


class Account(msgspec.Struct, array_like=True):
    """One line: a tenant's use of a model on a day.

    Attributes:
        requests: calls of the model, and answers that needed none.
        reused: of these, answers that were kept, or shared with another request.
        unknown_usage, unknown_cost: of these, those whose tokens, or whose cost, nobody knows.
        prompt_tokens, cached_tokens, completion_tokens: as the answers' usage says.
        cost: money, of those whose cost is known. presumed_cost: what the budget was charged for the others.
        engine_seconds: of models of ours: its share of the engine's time.
        saved: by cache, routing and speculation.
    """

    requests: int = 0
    reused: int = 0
    unknown_usage: int = 0
    unknown_cost: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    presumed_cost: float = 0.0
    engine_seconds: float = 0.0
    saved: dict[str, Saved] = {}

    def add(self, spend: Spend, presumed_cost: float = 0.0) -> None:
        self.requests += 1
        self.reused += spend.reused
        self.unknown_usage += spend.prompt_tokens is None or spend.completion_tokens is None
        self.prompt_tokens += spend.prompt_tokens or 0
        self.cached_tokens += spend.cached_tokens or 0
        self.completion_tokens += spend.completion_tokens or 0
        if spend.cost is None:
            self.unknown_cost += 1
            self.presumed_cost += presumed_cost
        else:
            self.cost += spend.cost
        self.engine_seconds += spend.engine_seconds or 0.0
        for saving in spend.savings:
            if saving.cost is None and saving.seconds is None:
                continue  # nothing is known, which is no line of nothing
            saved = self.saved.setdefault(saving.by, Saved())
            saved.cost += saving.cost or 0.0
            saved.seconds += saving.seconds or 0.0

    def merge(self, other: "Account") -> None:
        for name in self.__struct_fields__:
            if name != "saved":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        for by, more in other.saved.items():
            saved = self.saved.setdefault(by, Saved())
            saved.cost += more.cost
            saved.seconds += more.seconds


class Line(msgspec.Struct, frozen=True):
    """`day`: since the epoch."""

    tenant: str
    day: int
    model: str
    account: Account


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Account)


class Ledger:
    """Lines in one database, within transactions of the caller's."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, txn: Transaction, key: bytes) -> Account:
        """`key`: of `account_key`."""
        data = txn.get(key, db=self._database)
        return Account() if data is None else _decoder.decode(data)

    def write(self, txn: Transaction, key: bytes, account: Account) -> None:
        txn.put(key, _encoder.encode(account), db=self._database)

    def add_lost(
        self, txn: Transaction, tenant: str, requests: int, presumed_cost: float, now: float
    ) -> None:
        """Requests whose process was killed."""
        key = account_key(tenant, day_of(now), UNKNOWN_MODEL)
        account = self.read(txn, key)
        account.merge(
            Account(
                requests=requests,
                unknown_usage=requests,
                unknown_cost=requests,
                presumed_cost=presumed_cost,
            )
        )
        self.write(txn, key, account)

    def spent_since(self, txn: Transaction, tenant: str, moment: int) -> float:
        """Money that the budget was charged since the day of `moment`."""
        lines = self.lines(txn, tenant, day_of(moment))
        return sum(line.account.cost + line.account.presumed_cost for line in lines)

    def lines(self, txn: Transaction, tenant: str | None = None, since_day: int = 0) -> Iterator[Line]:
        """Of one tenant or all, by tenant, day and model."""
        prefix = b"" if tenant is None else tenant.encode() + b"\0"
        with txn.cursor(self._database) as cursor:
            cursor.set_range(prefix + since_day.to_bytes(_DAY_BYTES, "big") if prefix else b"\0")
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    return
                name, _, rest = key.partition(b"\0")
                day = int.from_bytes(rest[:_DAY_BYTES], "big")
                if day >= since_day:
                    yield Line(
                        name.decode(),
                        day,
                        rest[_DAY_BYTES:].decode("utf-8", "replace"),
                        _decoder.decode(value),
                    )


@lru_cache(maxsize=4096)
def account_key(tenant: str, day: int, model: str) -> bytes:
    return tenant.encode() + b"\0" + day.to_bytes(_DAY_BYTES, "big") + model.encode()[:_MODEL_BYTES]
