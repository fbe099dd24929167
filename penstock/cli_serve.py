"""`penstock serve`."""

import logging
import os
from collections.abc import Mapping
from typing import Any

from . import __version__
from .config import NO_MODEL, Settings, SettingsSource
from .scheduler import AsyncEmbedder, AsyncEngine, ModelInfo

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
            settings, source, on_ready=lambda address, info: _announce(settings, address, info)
        )
    else:
        _serve_alone(settings, source)
    return 0


def _serve_alone(settings: Settings, source: SettingsSource) -> None:
    import uvloop

    from .models.embedding_location import choose_embedding_model
    from .proxy.reload import follow
    from .proxy.server import address_of, engine_config, listen, serve

    sock = listen(settings)
    embedding_model = choose_embedding_model(settings.embedding_model)

    async def main() -> None:
        await serve(
            settings,
            None if settings.model == NO_MODEL else AsyncEngine(engine_config(settings)),
            sock,
            None if embedding_model is None else AsyncEmbedder(embedding_model),
            on_serving=lambda context: follow(context, source),
            on_ready=lambda backend: _announce(
                settings, address_of(sock), None if backend is None else backend.engine.info
            ),
        )

    uvloop.run(main())


def _announce(settings: Settings, address: str, info: ModelInfo | None) -> None:
    """`info` None: only upstreams are served."""
    upstreams = ", ".join(settings.upstreams)
    if info is None:
        print(f"Penstock {__version__} serves what its upstreams do ({upstreams}), at {address}")
        print(embeddings_line(settings), flush=True)
        return
    from .models.location import model_name

    name = settings.served_model_name or model_name(settings.model)
    precision = info.dtype if info.precision == "none" else info.precision.upper()
    size = f"{info.num_parameters / 1e6:.1f}M parameters, {precision} on {info.device}"
    model = f"{name} ({info.architecture}, {size})"
    print(f"Penstock {__version__} serves {model}, up to {info.max_model_len} tokens, at {address}")
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


def embeddings_line(settings: Settings) -> str:
    """What embeds, or what does not work without."""
    from .models.embedding_location import AUTO, choose_embedding_model, embedding_model_name

    chosen = choose_embedding_model(settings.embedding_model)
    if chosen is not None:
        return f"Embeddings by {embedding_model_name(chosen)}"
    remedy = ""
    if settings.embedding_model == AUTO:
        remedy = " Install penstock[semantic], or set --embedding-model."
    return (
        f"No embedding model: the cache finds exact repeats only, and /v1/embeddings is not served.{remedy}"
    )
