"""The semantic index: which stored prompts mean nearly the same. Knows neither text nor completions: embeddings and keys.

index = SemanticIndex(CacheEnvironment(path, max_bytes=1 << 30))
index.add(partition, key, embedding)          # returns at once; a thread writes
index.search(partition, embedding, 5)         # [Match(key, similarity), ...], the nearest first
"""

from .index import Match, SemanticIndex

__all__ = ["Match", "SemanticIndex"]
