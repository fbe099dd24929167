"""Models as `penstock eval` measures them: each with an engine, all in memory together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cli_model_spec import ModelSpec
from .config import Settings
from .errors import ConfigError

if TYPE_CHECKING:
    from .compress.evaluate import ServedScorer
    from .models.tokenizer import Tokenizer
    from .scheduler import Engine

# Of a GPU's memory, for the KV of all models together: their weights, and logits, have to fit beside.
_KV_SHARE = 0.5


@dataclass(slots=True)
class Loaded:
    spec: ModelSpec
    engine: "Engine"
    tokenizer: "Tokenizer"
    scorer: "ServedScorer"

    @property
    def precision(self) -> str:
        """What weights, and KV where that is another, are served in."""
        served = self.engine.runner.model
        weights = self.engine.info.dtype if served.precision == "none" else served.precision
        if weights == "mixed":
            weights = ", ".join(f"{count} {name}" for name, count in served.linears.items())
        return weights + (" + int8 KV" if served.kv_cache_dtype == "int8" else "")

    @property
    def identity(self) -> tuple[str, str, str]:
        """What is found of it is found again of the same."""
        return self.spec.text, self.engine.info.fingerprint, self.precision


def refuse_twice(specs: Sequence[ModelSpec]) -> None:
    if len({spec.text for spec in specs}) < len(specs):
        raise ConfigError("A model is named twice; name each once.", param="models")


def load(spec: ModelSpec, settings: Settings, count: int) -> Loaded:
    """`count`: of models that are in memory together. Raises PenstockError."""
    from .compress.evaluate import ServedScorer
    from .compress.training.interruption import Interruption
    from .models.tokenizer import Tokenizer
    from .scheduler import Engine, EngineConfig

    config = EngineConfig(
        model=spec.model,
        quantize=spec.quantize,
        kv_cache_dtype=spec.kv_cache_dtype,
        dtype=settings.dtype if spec.dtype == "auto" else spec.dtype,
        device=settings.device,
        threads=settings.threads,
        gpu_memory_utilization=_KV_SHARE / count,
        prefix_caching=False,  # so that no round of timing has its prompts computed already
    )
    with Interruption() as interruption:
        engine = Engine(config)
    interruption.raise_it()
    scorer = ServedScorer(engine.runner.model, spec.text)
    return Loaded(spec, engine, Tokenizer.load(spec.model), scorer)
