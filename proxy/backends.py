"""The models served here, each with an engine of its own: which of them has a name, and when all are loaded."""

import asyncio
from collections.abc import Iterator, Sequence

from ..errors import ConfigError, ModelNotFoundError
from .backend import ANY_NAME, Backend, Served


class Backends:
    """The main model and its tiers, in this order; none where only upstreams are served.

    Args:
        main: also has the LoRA adapters.
        tiers: are known by their own name each.

    Raises ConfigError when a name stands for two of them.
    """

    def __init__(self, main: Backend | None, tiers: Sequence[Backend] = ()) -> None:
        self._all = [backend for backend in (main, *tiers) if backend is not None]
        self._main = main
        for backend in self._all:
            for other in self._all:
                if other is not backend and backend.name in other.names:
                    raise ConfigError(
                        f"Two models served here are called {backend.name!r}; call the tier something else, or set "
                        "served_model_name.",
                        param="tiers",
                    )

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._all)

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def main(self) -> Backend:
        """Raises ModelNotFoundError where only upstreams are served."""
        if self._main is None:
            raise ModelNotFoundError("No model is served here, only upstreams: the setting model is 'none'.")
        return self._main

    @property
    def names(self) -> list[str]:
        """All of them, with adapters and aliases, but for those that "*" takes."""
        return [name for backend in self._all for name in backend.names]

    @property
    def default(self) -> Backend | None:
        """Whose alias "*" is: it takes every name that nobody has."""
        return next((backend for backend in self._all if ANY_NAME in backend.aliases), None)

    def named(self, name: str) -> Served | None:
        """What answers to `name`, not by "*"; None where nothing does."""
        return next((backend.find(name) for backend in self._all if name in backend.names), None)

    def find(self, name: str | None) -> Backend:
        """Whose name it is, or who takes any; None: the main model. Raises ModelNotFoundError."""
        main = self.main
        if name is None:
            return main
        served = self.named(name)
        found = self.default if served is None else self.of(served)
        if found is None:
            raise ModelNotFoundError(
                f"The model {name!r} does not exist here; served are: {', '.join(self.names)}.", param="model"
            )
        return found

    def of(self, served: Served) -> Backend:
        """Whose it is. `served` is one of those found here."""
        return next(backend for backend in self._all if backend.serves(served))

    async def start(self) -> None:
        """Returns when all can answer. Raises ModelLoadError as soon as one cannot."""
        loading = [asyncio.create_task(backend.start()) for backend in self._all]
        if not loading:
            return
        try:
            await asyncio.gather(*loading)
        finally:
            for task in loading:
                task.cancel()
            await asyncio.wait(loading)

    async def close(self) -> None:
        await asyncio.gather(*(backend.close() for backend in self._all))
