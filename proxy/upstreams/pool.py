"""All upstreams of one server, as the settings file has them now."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

from ...errors import UpstreamError
from ...tables import Upstream as Settings
from ..observe.upstream_metrics import UpstreamMetrics
from .upstream import Upstream

# A connection that nobody uses any more is found out this often.
_SWEEP_SECONDS = 1.0


class UpstreamPool:
    """Made within a running event loop; to be closed.

    Args:
        figures: gives those of an upstream by its name.
    """

    def __init__(self, upstreams: Mapping[str, Settings], figures: Callable[[str], UpstreamMetrics]) -> None:
        self._figures = figures
        self._upstreams = {
            name: Upstream(name, settings, figures(name)) for name, settings in upstreams.items()
        }
        self._retiring: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> Upstream:
        """Raises UpstreamError when the settings file has it no longer."""
        try:
            return self._upstreams[name]
        except KeyError:
            raise UpstreamError(f"The upstream {name} was just taken out of the settings.") from None

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._upstreams.values())

    def replace(self, upstreams: Mapping[str, Settings]) -> None:
        """Takes other settings. What has not changed keeps its connections and what is known of its health; what has gone
        is closed when its last reply has ended."""
        before = self._upstreams
        self._upstreams = {
            name: before[name]
            if name in before and before[name].settings == settings
            else Upstream(name, settings, self._figures(name))
            for name, settings in upstreams.items()
        }
        for upstream in before.values():
            if self._upstreams.get(upstream.name) is not upstream:
                task = asyncio.create_task(_retire(upstream))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        for task in self._retiring:
            task.cancel()
        for upstream in self._upstreams.values():
            await upstream.close()


async def _retire(upstream: Upstream) -> None:
    try:
        while upstream.active:  # noqa: ASYNC110
            await asyncio.sleep(_SWEEP_SECONDS)
    finally:
        await upstream.close()
