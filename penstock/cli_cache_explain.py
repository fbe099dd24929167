"""`penstock cache explain`: embeds a question as a server would, and says what its neighbours are good for."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from .cache.embedder import Embedder
from .cache.explain import Partition, Verdict, learnt_of, neighbours, partitions, verdict
from .cache.near import NEIGHBOURS
from .cache.opened import OpenedCache
from .cache.selection import Selection
from .cache.values import Neighbour
from .cli_cache_show import duration, entries, print_json, scope_name, short
from .config import ENGINE_EMBEDS, Settings
from .errors import ConfigError
from .models.embedding_location import choose_embedding_model
from .proxy.cache_scope import MAX_QUESTION_CHARACTERS
from .proxy.engine_embedder import EngineEmbedder
from .proxy.server import engine_config, main_backend
from .scheduler import AsyncEmbedder, AsyncEngine

if TYPE_CHECKING:
    from .cache.semantic.codes import Floats


class _Explained(msgspec.Struct, frozen=True):
    partition: Partition
    searched: bool
    """False where another embedder was at work: a server with this one would not search it."""
    found: list[tuple[Neighbour, Verdict]]


def explain(
    cache: OpenedCache,
    settings: Settings,
    arguments: Mapping[str, Any],
    selection: Selection,
    tenants: Mapping[bytes, str],
) -> None:
    """Raises ConfigError when nothing can be compared, ModelLoadError when the embedder cannot be loaded."""
    import uvloop

    text = arguments["text"].strip()
    if not 0 < len(text) <= MAX_QUESTION_CHARACTERS:
        raise ConfigError(
            f"TEXT has {len(text)} characters; questions of 1 to {MAX_QUESTION_CHARACTERS} are searched for.",
            param="text",
        )
    if settings.embedding_model != ENGINE_EMBEDS and choose_embedding_model(settings.embedding_model) is None:
        raise ConfigError(
            "No embedding model: install penstock[semantic], or set --embedding-model.",
            param="embedding_model",
        )
    known = [one for one in partitions(cache, selection.prefix) if selection.includes_name(one.name)]
    compared = known[: arguments["partitions"]]
    texts = [text, *(one.sample.text for one in compared)]
    vectors = uvloop.run(_embedded(cache, settings, texts)) if compared else []
    explained = [
        _explain_one(cache, settings, text, vectors[0], one, own, arguments["limit"])
        for one, own in zip(compared, vectors[1:], strict=True)
    ]
    if arguments["json"]:
        print_json([_as_json(one) for one in explained])
        return
    for one in explained:
        _show(one, tenants)
    if len(known) > len(compared):
        print(
            f"{len(known) - len(compared)} smaller partitions were not searched; --partitions {len(known)} does."
        )
    if not known:
        print("Nothing here is found by meaning.")


async def _embedded(cache: OpenedCache, settings: Settings, texts: list[str]) -> "Sequence[Floats]":
    async with _embedder(settings) as embedder:
        vectors = await embedder.embed(texts)
        if cache.index is not None:
            cache.index.check_dims(embedder.dims)
    return list(vectors)


@asynccontextmanager
async def _embedder(settings: Settings) -> AsyncIterator[Embedder]:
    """As a server would have it, in processes of its own."""
    if settings.embedding_model == ENGINE_EMBEDS:
        backend = main_backend(settings, AsyncEngine(engine_config(settings)))
        await backend.start()
        try:
            by_engine = EngineEmbedder(backend)
            by_engine.check()
            yield by_engine
        finally:
            await backend.close()
        return
    model = choose_embedding_model(settings.embedding_model)
    assert model is not None, "checked before"
    embedder = AsyncEmbedder(model)
    try:
        yield embedder
    finally:
        await embedder.shutdown()


def _explain_one(
    cache: OpenedCache,
    settings: Settings,
    text: str,
    embedding: "Floats",
    partition: Partition,
    own: "Floats",
    limit: int,
) -> _Explained:
    if not partition.was_embedded_by(own):
        return _Explained(partition, False, [])
    found = neighbours(cache, partition.name, embedding, k=limit, now=time.time())
    rules: dict[str, Any] = {
        "mode": settings.cache_mode,
        "draft_similarity": settings.cache_similarity,
        "guards": settings.cache_guards,
    }
    learnt = None
    if settings.cache_mode == "trusted":
        # A server looks at this many, however few are shown.
        seen = neighbours(cache, partition.name, embedding, k=NEIGHBOURS, now=time.time())
        learnt = learnt_of(cache, text, seen, settings.cache_guards, settings.cache_max_error_rate)
    judged = [(one, verdict(text, one, rank=rank, learnt=learnt, **rules)) for rank, one in enumerate(found)]
    return _Explained(partition, True, judged)


def _show(explained: _Explained, tenants: Mapping[bytes, str]) -> None:
    partition = explained.partition
    around = short(partition.sample.before + " … " + partition.sample.after)
    print(f"{scope_name(partition.name, tenants)}: {entries(partition.entries)}, asked within {around}")
    if not explained.searched:
        print("  embedded by another model: a server with this one does not search here")
    for neighbour, judged in explained.found:
        print(f"  {neighbour.similarity:.4f}  {judged.rung:7}  {short(neighbour.question.text)}")
        print(
            f"          because {'; '.join(judged.reasons)}; {duration(neighbour.age)} old, {neighbour.place.hex()}"
        )


def _as_json(explained: _Explained) -> dict[str, Any]:
    partition = explained.partition
    return {
        "partition": partition.name.hex(),
        "entries": partition.entries,
        "searched": explained.searched,
        "before": partition.sample.before,
        "after": partition.sample.after,
        "neighbours": [
            {
                "place": neighbour.place.hex(),
                "similarity": neighbour.similarity,
                "question": neighbour.question.text,
                "age": neighbour.age,
                "rung": judged.rung,
                "reasons": judged.reasons,
            }
            for neighbour, judged in explained.found
        ],
    }
