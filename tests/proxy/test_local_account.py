"""What a local model's tokens cost before it has computed any; after that: test_tiers.py."""

from penstock import AsyncEngine, EngineConfig
from penstock.proxy.backend import Backend
from penstock.proxy.local_account import LocalAccount


def test_what_nothing_has_shown_yet_is_unknown_unless_it_costs_nothing():
    backend = Backend("builtin", AsyncEngine(EngineConfig()))
    assert LocalAccount(backend, hour_price=3600.0).known_cost(10) is None
    assert LocalAccount(backend, hour_price=0.0).known_cost(10) == 0.0
