"""Keys and tenants, durable, and read on every request: what one process changes holds in all at once.

A key that has ended stays, so that a server whose keys have all ended does not open to everybody.
"""

import time
from collections.abc import Callable
from functools import lru_cache

import msgspec

from ...errors import InvalidRequestError, NotFoundError
from .api_key import ApiKey, is_key_id
from .environment import Environment, Transaction
from .tenant import Tenant, check_name, is_name

KEYS, TENANTS = b"keys", b"tenants"
MAX_LABEL = 200


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a key. Moments are seconds since the epoch.

    Attributes:
        tenant: whose it is.
        digest: of the secret.
        created: when.
        ends: from when on it is refused; None for never.
        label: what its owner calls it.
    """

    tenant: str
    digest: bytes
    created: float
    ends: float | None = None
    label: str = ""


class ListedKey(msgspec.Struct, frozen=True):
    """A key as it may be shown: without its digest."""

    id: str
    tenant: str
    created: float
    ends: float | None
    label: str


class Found(msgspec.Struct, frozen=True):
    """`tenant` None: the key is none of ours; `ended`: it was. `is_empty`: no key was ever made here."""

    tenant: Tenant | None
    ended: bool
    is_empty: bool


_encoder = msgspec.msgpack.Encoder()
_key_decoder = msgspec.msgpack.Decoder(KeyRecord)
_tenant_decoder = msgspec.msgpack.Decoder(Tenant)


class Directory:
    """`clock`: seconds since the epoch."""

    def __init__(self, environment: Environment, clock: Callable[[], float] = time.time) -> None:
        self._env = environment
        self._clock = clock
        self._keys, self._tenants = environment.databases[KEYS], environment.databases[TENANTS]

    def find(self, key: ApiKey | None) -> Found:
        """Whose a key is, now. The secret is compared in constant time."""
        with self._env.reading() as txn:
            record = None if key is None else self._record(txn, key.id)
            if key is None or record is None or not key.matches(record.digest):
                return Found(None, False, txn.stat(self._keys)["entries"] == 0)
            if record.ends is not None and record.ends <= self._clock():
                return Found(None, True, False)
            return Found(self._tenant(txn, record.tenant), False, False)

    def tenant(self, name: str) -> Tenant:
        """Raises NotFoundError."""
        with self._env.reading() as txn:
            return self._known(txn, name)

    def tenants(self) -> list[Tenant]:
        with self._env.reading() as txn, txn.cursor(self._tenants) as cursor:
            return [_tenant_decoder.decode(value) for value in cursor.iternext(keys=False)]

    def keys(self, tenant: str | None) -> list[ListedKey]:
        """Of one tenant, or all; the oldest first, those that have ended too."""
        with self._env.reading() as txn:
            found = self._listed(txn)
        return sorted(
            (key for key in found if tenant in (None, key.tenant)), key=lambda key: (key.created, key.id)
        )

    def key(self, identity: str) -> ListedKey:
        """Raises NotFoundError."""
        with self._env.reading() as txn:
            return _listed_key(identity, self._known_key(txn, identity))

    def put_tenant(self, tenant: Tenant, *, new: bool = False) -> bool:
        """Makes it, or changes what it may; True when it was made. `new` refuses to change one.

        Raises InvalidRequestError.
        """
        check_name(tenant.name)
        with self._env.writing() as txn:
            exists = self._tenant(txn, tenant.name) is not None
            if exists and new:
                raise InvalidRequestError(
                    f"There is a tenant {tenant.name!r} already; change it, or choose another name."
                )
            txn.put(tenant.name.encode(), _encoder.encode(tenant), db=self._tenants)
        return not exists

    def remove_tenant(self, name: str) -> int:
        """Takes it away and ends its keys; returns how many. Its accounts stay. Raises NotFoundError."""
        with self._env.writing() as txn:
            self._known(txn, name)
            txn.delete(name.encode(), db=self._tenants)
            now = self._clock()
            own = [key for key in self._listed(txn) if key.tenant == name]
            live = [key.id for key in own if key.ends is None or key.ends > now]
            for identity in live:
                self._end(txn, identity, now)
        return len(live)

    def create_key(self, tenant: str, *, label: str = "") -> ApiKey:
        """The only moment at which its secret is known. Raises NotFoundError, InvalidRequestError."""
        if len(label) > MAX_LABEL or not label.isprintable():
            raise InvalidRequestError(
                f"The label has {len(label)} characters; it must be printable, and have at most {MAX_LABEL}.",
                param="label",
            )
        with self._env.writing() as txn:
            self._known(txn, tenant)
            return self._create(txn, tenant, label)

    def rotate_key(self, identity: str, *, grace: float = 0.0) -> ApiKey:
        """Another key in place of this one, which still holds for `grace` seconds. Raises NotFoundError."""
        with self._env.writing() as txn:
            old = self._live(txn, identity)
            self._end(txn, identity, self._clock() + grace)
            return self._create(txn, old.tenant, old.label)

    def revoke_key(self, identity: str) -> KeyRecord:
        """From now on, everywhere. Raises NotFoundError."""
        with self._env.writing() as txn:
            self._live(txn, identity)
            return self._end(txn, identity, self._clock())

    def close(self) -> None:
        self._env.close()

    def _create(self, txn: Transaction, tenant: str, label: str) -> ApiKey:
        key = ApiKey.new()
        while self._record(txn, key.id) is not None:
            key = ApiKey.new()
        record = KeyRecord(tenant=tenant, digest=key.digest, created=self._clock(), label=label)
        txn.put(key.id.encode(), _encoder.encode(record), db=self._keys)
        return key

    def _end(self, txn: Transaction, identity: str, moment: float) -> KeyRecord:
        record = self._record(txn, identity)
        assert record is not None
        ends = moment if record.ends is None else min(moment, record.ends)
        record = msgspec.structs.replace(record, ends=ends)
        txn.put(identity.encode(), _encoder.encode(record), db=self._keys)
        return record

    def _live(self, txn: Transaction, identity: str) -> KeyRecord:
        record = self._known_key(txn, identity)
        if record.ends is not None and record.ends <= self._clock():
            raise NotFoundError(f"The key {identity!r} has ended already.", param="id")
        return record

    def _known_key(self, txn: Transaction, identity: str) -> KeyRecord:
        record = self._record(txn, identity)
        if record is None:
            raise NotFoundError(
                f"There is no key {identity!r}; `penstock keys list` names them by their public ids.",
                param="id",
            )
        return record

    def _known(self, txn: Transaction, name: str) -> Tenant:
        tenant = self._tenant(txn, name)
        if tenant is None:
            raise NotFoundError(
                f"There is no tenant {name!r}; `penstock keys list` names them, `penstock keys create` makes one.",
                param="name",
            )
        return tenant

    def _listed(self, txn: Transaction) -> list[ListedKey]:
        with txn.cursor(self._keys) as cursor:
            return [
                _listed_key(identity.decode(), _key_decoder.decode(data))
                for identity, data in cursor.iternext()
            ]

    def _record(self, txn: Transaction, identity: str) -> KeyRecord | None:
        data = txn.get(identity.encode(), db=self._keys) if is_key_id(identity) else None
        return None if data is None else _key_of(data)

    def _tenant(self, txn: Transaction, name: str) -> Tenant | None:
        data = txn.get(name.encode(), db=self._tenants) if is_name(name) else None
        return None if data is None else _tenant_of(data)


@lru_cache(maxsize=4096)
def _key_of(data: bytes) -> KeyRecord:
    """The same bytes are the same key, of which a request every millisecond need not be told anew."""
    return _key_decoder.decode(data)


@lru_cache(maxsize=4096)
def _tenant_of(data: bytes) -> Tenant:
    return _tenant_decoder.decode(data)


def _listed_key(identity: str, record: KeyRecord) -> ListedKey:
    return ListedKey(identity, record.tenant, record.created, record.ends, record.label)
