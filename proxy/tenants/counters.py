"""What is taken of every tenant's limits now, shared by all processes: applies standing.py in transactions. Decides nothing.

LMDB's write lock makes a short transaction exact among processes. One admits a request, and settles on the way those that
have ended here since; what has ended when nobody comes is settled before the event loop waits again. What a process held
that was killed comes free when a request would otherwise be refused.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from .environment import Database, Environment, StoreError, SyncThread, Transaction
from .ledger import Account, Ledger, Line, account_key
from .process import is_alive, process_name
from .spend import Spend
from .standing import Ask, Held, Refusal, Standing, admitted, as_of, settled, without_dead
from .tenant import Tenant
from .window import day_of

STANDINGS, ACCOUNTS = b"standings", b"accounts"
# A process found alive is believed to be so for this long.
ALIVE_SECONDS = 1.0

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Standing)

log = logging.getLogger(__name__)


class Ended(msgspec.Struct, frozen=True):
    """A request that has ended, and what it took; without any spend, nothing: its estimates are given back.

    `again`: it had ended already, and this came after.
    """

    tenant: Tenant
    ask: Ask
    spends: list[Spend]
    again: bool = False


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
        self._owed: list[Ended] = []
        self._release_dead()

    def admit(self, tenant: Tenant, ask: Ask) -> Standing | Refusal:
        """The request is among those that run when this is a Standing; it must be settled then. Raises StoreError."""
        name, now = tenant.name, self._clock()
        with self._env.writing() as txn:
            book = self._settled_book(txn, self._owed, now)
            standing = book.standing(name)

            def spent_since(moment: int) -> float:
                book.write_accounts()
                return self._ledger.spent_since(txn, name, moment)

            decided = admitted(standing, tenant.limits, ask, self._process, now, spent_since)
            if isinstance(decided, Refusal) and decided.limit in ("concurrency", "budget"):
                book.write_accounts()
                standing = self._without_dead(txn, name, standing)
                book.put(name, standing)
                decided = admitted(standing, tenant.limits, ask, self._process, now, spent_since)
            if isinstance(decided, Standing):
                book.put(name, decided)
            self._write(book)
        self._owed.clear()
        return decided

    def settle(self, ended: Ended) -> None:
        """Before the event loop waits again; at once where none runs."""
        self._owed.append(ended)
        try:
            asyncio.get_running_loop().call_soon(self.pay)
        except RuntimeError:
            self.pay()

    def pay(self) -> None:
        """Writes what is owed. What cannot be written now is written with the next that can: its places stay taken until
        then, the answers are their clients' all the same."""
        owed, self._owed = self._owed, []  # first, as a server that ends does this in another thread
        if not owed:
            return
        try:
            with self._env.writing() as txn:
                self._write(self._settled_book(txn, owed, self._clock()))
        except StoreError as error:
            self._owed = owed + self._owed
            log.error("what %d requests have used cannot be written now: %s", len(owed), error)

    def written(self) -> None:
        """Something in the environment was; to be handed to the disk before long."""
        self._sync.written = True

    def standing(self, tenant: Tenant) -> Standing:
        """As of now."""
        with self._env.reading() as txn:
            return as_of(
                _Book(txn, self._standings, self._ledger).standing(tenant.name),
                tenant.limits,
                self._clock(),
                lambda moment: self._ledger.spent_since(txn, tenant.name, moment),
            )

    def lines(self, tenant: str | None = None, since_day: int = 0) -> list[Line]:
        with self._env.reading() as txn:
            return list(self._ledger.lines(txn, tenant, since_day))

    def close(self) -> None:
        self.pay()
        self._sync.stop()
        self._env.close()

    def _settled_book(self, txn: Transaction, owed: Sequence[Ended], now: float) -> "_Book":
        """With all that is owed in it, not yet written."""
        book = _Book(txn, self._standings, self._ledger)
        for ended in owed:
            self._settle(book, ended, now)
        return book

    def _settle(self, book: "_Book", ended: Ended, now: float) -> None:
        tenant, spends = ended.tenant, ended.spends
        ask = Ask() if ended.again else ended.ask
        tokens, cost, presumed = _truth(spends, ask)
        standing = settled(
            book.standing(tenant.name),
            tenant.limits,
            ask,
            self._process,
            now,
            tokens=tokens,
            cost=cost,
            places=0 if ended.again else 1,
        )
        book.put(tenant.name, standing)
        for spend in spends:
            book.account(tenant.name, now, spend.model).add(spend, presumed)
            if spend.cost is None:
                presumed = 0.0  # what was reserved was reserved for all of them

    def _write(self, book: "_Book") -> None:
        if book.write():
            self.written()

    def _release_dead(self) -> None:
        """Of all tenants, once: what a server held that was killed."""
        with self._env.writing() as txn, txn.cursor(self._standings) as cursor:
            for name, data in list(cursor.iternext()):
                before = _decoder.decode(data)
                after = self._without_dead(txn, name.decode(), before)
                if after is not before:
                    txn.put(name, _encoder.encode(after), db=self._standings)

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


class _Book:
    """What one transaction reads and changes of standings and accounts: each read once, and written once."""

    def __init__(self, txn: Transaction, database: Database, ledger: Ledger) -> None:
        self._txn, self._database, self._ledger = txn, database, ledger
        self._standings: dict[str, Standing] = {}
        self._changed: set[str] = set()
        self._accounts: dict[bytes, Account] = {}

    def standing(self, name: str) -> Standing:
        found = self._standings.get(name)
        if found is None:
            data = self._txn.get(name.encode(), db=self._database)
            found = self._standings[name] = Standing() if data is None else _decoder.decode(data)
        return found

    def put(self, name: str, standing: Standing) -> None:
        if self._standings.get(name) is not standing:
            self._standings[name] = standing
            self._changed.add(name)

    def account(self, tenant: str, now: float, model: str) -> Account:
        """To be changed."""
        key = account_key(tenant, day_of(now), model)
        found = self._accounts.get(key)
        if found is None:
            found = self._accounts[key] = self._ledger.read(self._txn, key)
        return found

    def write_accounts(self) -> None:
        for key, account in self._accounts.items():
            self._ledger.write(self._txn, key, account)
        self._accounts.clear()

    def write(self) -> bool:
        """Whether anything has changed."""
        self.write_accounts()
        for name in self._changed:
            self._txn.put(name.encode(), _encoder.encode(self._standings[name]), db=self._database)
        return bool(self._changed)


def _truth(spends: list[Spend], ask: Ask) -> tuple[int, float, float]:
    """Tokens and money; the estimate, at least, where some of it is unknown. And what of the money is presumed."""
    tokens, cost = 0, 0.0
    all_tokens = all_costs = True
    for spend in spends:
        taken = spend.limited_tokens
        if taken is None:
            all_tokens = False
        else:
            tokens += taken
        if spend.cost is None:
            all_costs = False
        else:
            cost += spend.cost
    charged = cost if all_costs else max(cost, ask.cost)
    return tokens if all_tokens else max(tokens, ask.tokens), charged, charged - cost
