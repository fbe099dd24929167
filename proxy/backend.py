"""The model behind the server: its engine, its tokenizer, its names, and whether it is ready."""

import asyncio
from collections.abc import Collection, Mapping

import msgspec

from ..errors import ConfigError, EngineDeadError, ModelNotFoundError, PenstockError
from ..models.generation_defaults import GenerationDefaults
from ..models.location import TOKENIZER_FILES, model_name, resolve_model
from ..models.tokenizer import Tokenizer
from ..scheduler import AsyncEngine

ANY_NAME = "*"


class Served(msgspec.Struct, frozen=True):
    """A name that requests are answered under, and the LoRA adapter that it stands for; None for the model as it is."""

    name: str
    adapter: str | None = None


class Backend:
    """Loads in the background, while requests wait in `ready`.

    Args:
        model: "builtin", a folder, or a hub id; the tokenizer comes from there.
        engine: not started yet; it restarts itself when it dies.
        served_name: the name clients use; None takes the model's own.
        aliases: other name -> served name; "*" stands for any.
        adapters: names of the engine's LoRA adapters, each served as NAME:ADAPTER.

    Raises ConfigError when an alias names another model.
    """

    def __init__(
        self,
        model: str,
        engine: AsyncEngine,
        *,
        served_name: str | None = None,
        aliases: Mapping[str, str] | None = None,
        adapters: Collection[str] = (),
    ) -> None:
        self.name = served_name or model_name(model)
        self._served = {self.name: Served(self.name)}
        for adapter in adapters:
            name = self.served_as(adapter)
            self._served[name] = Served(name, adapter)
        self.aliases = dict(aliases or {})
        for alias, target in self.aliases.items():
            if target not in self._served:
                raise ConfigError(
                    f"model_aliases maps {alias!r} to {target!r}, which is not served; "
                    f"write '{alias}={self.name}'.",
                    param="model_aliases",
                )
        self.failure: PenstockError | None = None
        self._model = model
        self.engine = engine
        self._tokenizer: Tokenizer | None = None
        self.defaults = GenerationDefaults()
        self._loaded = asyncio.Event()

    def served_as(self, adapter: str | None) -> str:
        """The name that answers bear."""
        return self.name if adapter is None else f"{self.name}:{adapter}"

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None, "await ready() first"
        return self._tokenizer

    @property
    def is_ready(self) -> bool:
        return self.is_loaded and self.engine.healthy

    async def start(self) -> None:
        """Returns when the model can answer. Raises ModelLoadError, which requests then see too."""
        try:
            # The engine's process starts first: loading weights takes longest.
            starting = asyncio.create_task(self.engine.start())
            try:
                self._tokenizer = await asyncio.to_thread(Tokenizer.load, self._model)
                self.defaults = GenerationDefaults.load(resolve_model(self._model, files=TOKENIZER_FILES))
            except BaseException:  # also when we are cancelled: nobody else would await it
                starting.cancel()
                await asyncio.wait([starting])
                raise
            self.engine.attach_tokenizer(self._tokenizer)
            await starting
        except PenstockError as error:
            self.failure = error
            raise
        finally:
            self._loaded.set()

    async def ready(self) -> None:
        """Waits until the model was loaded once. Raises EngineDeadError when it could not be.

        An engine that died since is no failure here: what is cached is still answered, and the engine says so
        itself when asked for more.
        """
        if not self._loaded.is_set():
            await self._loaded.wait()
        if self.failure is not None:
            raise EngineDeadError(f"The model could not be loaded: {self.failure.message}")

    def find(self, name: str | None) -> Served:
        """What answers to `name`: the model, or one of its adapters. Raises ModelNotFoundError when nothing does."""
        if name is None:
            return self._served[self.name]
        served = self._served.get(name) or self._served.get(
            self.aliases.get(name) or self.aliases.get(ANY_NAME, "")
        )
        if served is not None:
            return served
        raise ModelNotFoundError(
            f"The model {name!r} does not exist here; served are: {', '.join(self.names)}.", param="model"
        )

    def serves(self, served: Served) -> bool:
        return self._served.get(served.name) == served

    @property
    def is_loaded(self) -> bool:
        """It could answer once, whether or not its engine lives now."""
        return self._loaded.is_set() and self.failure is None

    @property
    def names(self) -> list[str]:
        return [*self._served, *(alias for alias in self.aliases if alias not in (ANY_NAME, *self._served))]

    async def close(self) -> None:
        await self.engine.shutdown()
