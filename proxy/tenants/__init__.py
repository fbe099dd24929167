"""Who may ask for how much, and what it took: API keys, tenants, their limits and budgets, and the accounts.

    key -> Tenant -> Admission -> Spend
    directory    keys and tenants, durable           standing     pure: limits, buckets, windows
    counters     what is taken of the limits now     ledger       what was used, by tenant, day and model

All of it is shared by every process on this machine through two LMDB files. Nothing here knows a wire format or an engine.
"""
