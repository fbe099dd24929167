"""A cache of what tenants asked and were answered, for the commands that learn from it."""

from collections.abc import Mapping
from pathlib import Path

from cache_worker import make_completion, make_key

from penstock.cache import CompletionCache, WholePrompt


def keep_answers(path: Path, counts: Mapping[str, int], *, since: int = 0) -> None:
    """Of each tenant by name so many different ones, numbered from `since`."""
    with CompletionCache(path) as cache:
        for tenant, count in counts.items():
            for number in range(since, since + count):
                asked = [{"role": "user", "content": f"{tenant} {chr(97 + number)}"}]
                key = make_key(number, tenant)
                cache.store(key, make_completion(number, 20), prompt=WholePrompt("m", messages=asked))
        cache.flush()
