"""What is taken of every tenant's limits now, shared by all processes: applies standing.py in transactions. Decides nothing.

One short transaction admits a request and one settles it, with its line of the accounts: LMDB's write lock makes both exact
among processes. What a process held that was killed comes free when a request would otherwise be refused.
"""

import time
from collections import deque
from collections.abc import Callable

import msgspec

from .environment import Environment, SyncThread, Transaction
from .ledger import Ledger, Line
from .process import is_alive, process_name
from .spend import Spend
from .standing import Ask, Held, Refusal, Standing, admitted, as_of, settled, without_dead
from .tenant import Tenant

STANDINGS, ACCOUNTS = b"standings", b"accounts"
# A process found alive is believed to be so for this long.
ALIVE_SECONDS = 1.0

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Standing)


class Counters:
    """`clock`: seconds since the epoch, the same in all processes."""

    def __init__(self, environment: Environment, clock: Callable[[], float] = time.time) -> None:
        self._env = environment
        self._clock = clock
        self._standings = environment.databases[STANDINGS]
        self._ledger = Ledger(environment.databases[ACCOUNTS])
        self._sync = SyncThread(environment)
        self._process = process_name()
        self._seen_alive: dict[str, float] = {}
        self._owed: deque[tuple[Tenant, Ask, list[Spend], bool]] = deque()
        self._release_dead()

    def admit(self, tenant: Tenant, ask: Ask) -> Standing | Refusal:
        """The request is among those that run when this is a Standing; it must be settled then."""
        if self._owed:
            self._pay()
        name, now = tenant.name.encode(), self._clock()
        with self._env.writing() as txn:
            before = standing = self._standing(txn, name)

            def spent_since(moment: int) -> float:
                return self._ledger.spent_since(txn, tenant.name, moment)

            decided = admitted(standing, tenant.limits, ask, self._process, now, spent_since)
            if isinstance(decided, Refusal) and decided.limit in ("concurrency", "budget"):
                standing = self._without_dead(txn, tenant.name, standing)
                decided = admitted(standing, tenant.limits, ask, self._process, now, spent_since)
            if isinstance(decided, Standing):
                standing = decided
            if standing is not before:
                self._put(txn, name, standing)
                self._sync.written = True
        return decided

    def settle(self, tenant: Tenant, ask: Ask, spends: list[Spend], *, again: bool = False) -> None:
        """The request has ended, and took this; without any spend, nothing: its estimates are given back.

        `again`: it had ended already, and this came after. What cannot be written now is written with the next one that can.
        Raises StoreError.
        """
        self._owed.append((tenant, ask, spends, again))
        self._pay()

    def _pay(self) -> None:
        while self._owed:
            self._settle(*self._owed[0])
            self._owed.popleft()

    def _settle(self, tenant: Tenant, ask: Ask, spends: list[Spend], again: bool) -> None:
        if again:
            ask = Ask()
        name, now = tenant.name.encode(), self._clock()
        tokens, cost = _truth(spends, ask)
        presumed = max(0.0, cost - sum(spend.cost or 0.0 for spend in spends))
        with self._env.writing() as txn:
            standing = settled(
                self._standing(txn, name),
                tenant.limits,
                ask,
                self._process,
                now,
                tokens=tokens,
                cost=cost,
                places=0 if again else 1,
            )
            self._put(txn, name, standing)
            for spend in spends:
                self._ledger.add(txn, tenant.name, spend, now, presumed_cost=presumed)
                if spend.cost is None:
                    presumed = 0.0  # what was reserved was reserved for all of them
        self._sync.written = True

    def standing(self, tenant: Tenant) -> Standing:
        """As of now."""
        with self._env.reading() as txn:
            return as_of(
                self._standing(txn, tenant.name.encode()),
                tenant.limits,
                self._clock(),
                lambda moment: self._ledger.spent_since(txn, tenant.name, moment),
            )

    def lines(self, tenant: str | None = None, since_day: int = 0) -> list[Line]:
        with self._env.reading() as txn:
            return list(self._ledger.lines(txn, tenant, since_day))

    def close(self) -> None:
        self._sync.stop()
        self._env.close()

    def _standing(self, txn: Transaction, name: bytes) -> Standing:
        data = txn.get(name, db=self._standings)
        return Standing() if data is None else _decoder.decode(data)

    def _put(self, txn: Transaction, name: bytes, standing: Standing) -> None:
        txn.put(name, _encoder.encode(standing), db=self._standings)

    def _release_dead(self) -> None:
        """Of all tenants, once: what a server held that was killed."""
        with self._env.writing() as txn, txn.cursor(self._standings) as cursor:
            for name, data in list(cursor.iternext()):
                before = _decoder.decode(data)
                after = self._without_dead(txn, name.decode(), before)
                if after is not before:
                    self._put(txn, name, after)

    def _without_dead(self, txn: Transaction, tenant: str, standing: Standing) -> Standing:
        standing, lost = without_dead(standing, self._is_alive)
        if lost != Held():
            self._ledger.add_lost(txn, tenant, lost.requests, lost.cost, self._clock())
        return standing

    def _is_alive(self, process: str) -> bool:
        now = time.monotonic()
        if process == self._process or now - self._seen_alive.get(process, -ALIVE_SECONDS) < ALIVE_SECONDS:
            return True
        if is_alive(process):
            self._seen_alive[process] = now
            return True
        self._seen_alive.pop(process, None)
        return False


def _truth(spends: list[Spend], ask: Ask) -> tuple[int, float]:
    """Tokens and money; the estimate, at least, where some of it is unknown."""
    tokens = sum(spend.limited_tokens or 0 for spend in spends)
    if any(spend.limited_tokens is None for spend in spends):
        tokens = max(tokens, ask.tokens)
    cost = sum(spend.cost or 0.0 for spend in spends)
    if any(spend.cost is None for spend in spends):
        cost = max(cost, ask.cost)
    return tokens, cost
