"""The LMDB completion cache: keys, store, policy. Knows neither HTTP nor the engine."""
