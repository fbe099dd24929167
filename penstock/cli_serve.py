"""`penstock serve`."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from . import __version__
from .config import ENGINE_EMBEDS, Settings, SettingsSource
from .scheduler import AsyncEmbedder, ModelInfo

log = logging.getLogger(__name__)


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    from .proxy.log import set_up_logging
    from .proxy.open_files import raise_limit

    set_up_logging(settings.log_level)
    raise_limit()
    for name, upstream in settings.upstreams.items():
        if upstream.sends_key_in_clear:
            log.warning("The key of upstream %s goes unencrypted over the network; use https.", name)
    source = SettingsSource(arguments, os.environ)
    if settings.workers > 1:
        from .proxy.workers import serve_with_workers

        serve_with_workers(
            settings, source, on_ready=lambda address, infos: _announce(settings, address, infos)
        )
    else:
        _serve_alone(settings, source)
    return 0


def _serve_alone(settings: Settings, source: SettingsSource) -> None:
    import uvloop

    from .models.embedding_location import choose_embedding_model
    from .proxy.reload import follow
    from .proxy.server import address_of, engines_of, listen, serve

    sock = listen(settings)
    embedding_model = choose_embedding_model(settings.embedding_model)

    async def main() -> None:
        engine, tiers = engines_of(settings)
        await serve(
            settings,
            engine,
            sock,
            None if embedding_model is None else AsyncEmbedder(embedding_model),
            tiers=tiers,
            on_serving=lambda context: follow(context, source),
            on_ready=lambda backends: _announce(
                settings, address_of(sock), {backend.name: backend.engine.info for backend in backends}
            ),
        )

    uvloop.run(main())


def _announce(settings: Settings, address: str, infos: Mapping[str, ModelInfo]) -> None:
    """`infos`: of the models served here by their names, the main one first; none: only upstreams are served."""
    upstreams = ", ".join(settings.upstreams)
    if not infos:
        print(f"Penstock {__version__} serves what its upstreams do ({upstreams}), at {address}")
        print(embeddings_line(settings), flush=True)
        return
    (name, info), *tiers = infos.items()
    print(f"Penstock {__version__} serves {_described(name, info)}, at {address}")
    for tier, its in tiers:
        print(f"Beside it: {_described(tier, its)}")
    print(info.kernels)
    print(embeddings_line(settings))
    if upstreams:
        print(f"Upstreams: {upstreams}")
    if info.draft_model:
        print(f"Drafts by {info.draft_model}")
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    question = "how do I extract a tar.gz archive?"
    body = f'{{"model":"{name}","stream":true,"messages":[{{"role":"user","content":"{question}"}}]}}'
    print(
        f"Try:  curl -N {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
        flush=True,
    )


def _described(name: str, info: ModelInfo) -> str:
    precision = info.dtype if info.precision == "none" else info.precision.upper()
    size = f"{info.num_parameters / 1e6:.1f}M parameters, {precision} on {info.device}"
    return f"{name} ({info.architecture}, {size}), up to {info.max_model_len} tokens"


def embeddings_line(settings: Settings) -> str:
    """What embeds, or what does not work without."""
    from .models.embedding_location import AUTO, choose_embedding_model, embedding_model_name

    chosen = choose_embedding_model(settings.embedding_model)
    if chosen is not None:
        return f"Embeddings by {embedding_model_name(chosen)}"
    if settings.embedding_model == ENGINE_EMBEDS:
        return "Embeddings by the served model itself, for the cache alone: /v1/embeddings is not served"
    remedy = ""
    if settings.embedding_model == AUTO:
        remedy = " Install penstock[semantic], or set --embedding-model."
    return (
        f"No embedding model: the cache finds exact repeats only, and /v1/embeddings is not served.{remedy}"
    )
