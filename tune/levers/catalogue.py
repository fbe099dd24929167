"""Which levers a server has for given models, a workload and a device, and what its settings are with each choice."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .space import Choice, Lever, Space

# The model that is asked for, whichever one answers.
ASKED = "tuned"
# Shorter prompts are attended to whole in any case.
LONG_CONTEXT = 4096
_ERROR_RATES = (0.005, 0.01, 0.03)
_MASSES = (0.99, 0.95, 0.9)
_BATCHES = ((16, 512), (64, 2048))


@dataclass(frozen=True, slots=True)
class Served:
    """A model and how it is served.

    Attributes:
        text: as the user wrote it.
        settings: `model`, `quantize` and their like, of the settings file.
    """

    text: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cascade:
    """A smaller model that is asked first.

    Attributes:
        router: the file that decides, made for tiers that it calls `small_name` and `large_name`.
        qualities: that it has thresholds for.
    """

    small: Served
    router: Path
    small_name: str
    large_name: str
    qualities: Sequence[float]


def space_of(
    models: Sequence[Served],
    *,
    drafters: Sequence[Served] = (),
    cascade: Cascade | None = None,
    longest_prompt: int = 0,
    on_gpu: bool = False,
) -> Space:
    """Args:
    models: the first is the one that all answers are held to.
    drafters: smaller models of its vocabulary that may guess for it.
    longest_prompt: of the workload, in tokens, by estimate.
    """
    levers = [
        Lever("model", tuple(Choice(model.text, model.settings) for model in models)),
        Lever("cache", tuple(_caches())),
        Lever("guessing", tuple(_guessing(drafters))),
        Lever("batch", tuple(_batches())),
    ]
    if cascade is not None:
        levers.append(Lever("route", tuple(_routes(cascade))))
    if on_gpu:
        int8 = Choice("INT8 KV", {"kv_cache_dtype": "int8"})
        levers.append(Lever("KV", (Choice("KV as it is", {}), int8)))
    if longest_prompt > LONG_CONTEXT:
        levers.append(Lever("attention", tuple(_attention())))
    return Space(tuple(levers))


def _caches() -> Iterator[Choice]:
    yield Choice("no cache", {"cache": False})
    yield Choice("exact cache", {"cache": True, "cache_mode": "off"})
    yield Choice("cached drafts", {"cache": True, "cache_mode": "draft"})
    for rate in _ERROR_RATES:
        settings = {"cache": True, "cache_mode": "trusted", "cache_max_error_rate": rate}
        yield Choice(f"trusted at {100 * rate:g} %", settings)


def _guessing(drafters: Sequence[Served]) -> Iterator[Choice]:
    yield Choice("usual guessing", {"speculation": "auto"})
    yield Choice("no guessing", {"speculation": "off"})
    for drafter in drafters:
        own = drafter.settings
        settings = {"speculation": "on", "draft_model": own["model"], "draft_quantize": own["quantize"]}
        yield Choice(f"guesses of {drafter.text}", settings)


def _batches() -> Iterator[Choice]:
    yield Choice("usual batches", {})
    for sequences, tokens in _BATCHES:
        settings = {"max_num_seqs": sequences, "max_num_batched_tokens": tokens}
        yield Choice(f"batches of {sequences}, {tokens} tokens", settings)


def _routes(cascade: Cascade) -> Iterator[Choice]:
    yield Choice("one model", {})
    for quality in cascade.qualities:
        settings = {
            "served_model_name": cascade.large_name,
            "tiers": {cascade.small_name: dict(cascade.small.settings)},
            "routes": {
                ASKED: {
                    "policy": "cascade",
                    "targets": [cascade.small_name, cascade.large_name],
                    "router": str(cascade.router),
                    "quality": quality,
                }
            },
        }
        yield Choice(f"{cascade.small.text} first, for {100 * quality:g} %", settings)


def _attention() -> Iterator[Choice]:
    yield Choice("dense attention", {})
    for mass in _MASSES:
        settings = {"mass": mass, "min_context": LONG_CONTEXT}
        yield Choice(f"attention mass {mass:g}", {"sparse_attention": settings})
