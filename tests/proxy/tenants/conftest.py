"""A folder of tenants, and a clock that stands still until a test moves it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.proxy.tenants.admission import Admission
from penstock.proxy.tenants.tenant import Limits, Tenant
from penstock.proxy.tenants.tenants import Tenants, TenantStore

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    store: TenantStore
    tenants: Tenants
    clock: Clock
    path: Path

    def make(self, name: str = "acme", **fields) -> Tenant:
        """Limits and the rest as one."""
        limits = {key: fields.pop(key) for key in Limits.__struct_fields__ if key in fields}
        self.store.directory.put_tenant(Tenant(name=name, limits=Limits(**limits), **fields))
        return self.store.directory.tenant(name)

    def admit(self, tenant: Tenant, *, tokens: int = 0, cost: float | None = None) -> Admission:
        return self.tenants.admit(tenant, model="m", tokens=tokens, cost=cost)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    clock = Clock()
    store = TenantStore(tmp_path / "tenants", clock)
    yield Place(store, Tenants(store), clock, tmp_path / "tenants")
    store.close()
