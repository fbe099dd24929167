"""What leaves this process beside figures: the hourly totals; access log and traces where the settings ask for them."""

import sys
from typing import TYPE_CHECKING

from ...config import Settings
from ...errors import ConfigError
from ..tenants.totals import Totals
from .access_log import AccessLog
from .hourly import Hourly
from .line_writer import LineWriter
from .recorder import Sink

if TYPE_CHECKING:
    from .telemetry import Telemetry


class Journal:
    """Made once per process, on its event loop's thread; writes nothing before the loop runs. `totals`: None keeps none.

    Attributes:
        sinks: of records; `spans`: None without tracing.

    Raises ConfigError when tracing is asked for and its packages are missing.
    """

    def __init__(self, settings: Settings, totals: Totals | None = None) -> None:
        self.sinks: tuple[Sink, ...] = ()
        self.spans: Telemetry | None = None
        self._writer: LineWriter | None = None
        self._hourly: Hourly | None = None
        if totals is not None:
            self._hourly = Hourly(totals)
            self.sinks = (self._hourly,)
        if settings.access_log != "off":
            self._writer = LineWriter(sys.__stdout__.fileno() if sys.__stdout__ else 1)
            self.sinks = (*self.sinks, AccessLog(settings.access_log, self._writer.write))
        if settings.otel_endpoint is not None:
            self.spans = _telemetry(settings.otel_endpoint)

    async def close(self) -> None:
        """What was told reaches its readers, as far as they can be reached."""
        if self._hourly is not None:
            self._hourly.flush()
        if self._writer is not None:
            await self._writer.close()
        if self.spans is not None:
            await self.spans.close()


def _telemetry(endpoint: str) -> "Telemetry":
    try:
        from .telemetry import Telemetry
    except ImportError as error:
        raise ConfigError(
            f"otel_endpoint is set, and its packages are not installed ({error.name} is missing); "
            "install penstock[otel].",
            param="otel_endpoint",
        ) from error
    return Telemetry(endpoint)
