"""The LMDB completion cache: keys, store, policy. Knows neither HTTP nor the engine.

cache = CompletionCache(Path("completions.lmdb"))
key = completion_key(tenant="acme", namespace="", model="m", fingerprint="f", request=request)
hit = cache.lookup(key)                # None, or .completion and .age in seconds
cache.store(key, completion)           # returns at once; a thread writes
"""

from .completion_cache import CompletionCache
from .embedder import Embedder
from .key import CacheKey, completion_key, family_key, partition_key
from .near import Near, NearHits
from .values import CachedChoice, CachedCompletion, CacheHit, CacheStats, Neighbour, Question, WholePrompt

__all__ = [
    "CacheHit",
    "CacheKey",
    "CacheStats",
    "CachedChoice",
    "CachedCompletion",
    "CompletionCache",
    "Embedder",
    "Near",
    "NearHits",
    "Neighbour",
    "Question",
    "WholePrompt",
    "completion_key",
    "family_key",
    "partition_key",
]
