"""The semantic index: which stored prompts mean nearly the same. Knows neither text nor completions: embeddings and keys.

index = SemanticIndex(environment, dims=384)
with environment.write() as txn:
    index.change(txn, {partition: {key: index.unit(embedding)}})
index.search(partition, embedding, 5)         # [Match(key, similarity), ...], the nearest first
"""

from .index import MIN_DIMS, Changes, Match, SemanticIndex, Shape, Stored
from .store import has_entries

__all__ = ["MIN_DIMS", "Changes", "Match", "SemanticIndex", "Shape", "Stored", "has_entries"]
