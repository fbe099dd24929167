"""Settings taken anew while requests run: checked first, then all at once or not at all."""

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ..config import Settings, SettingsSource
from ..errors import ConfigError, PenstockError
from .keeping import Keeping
from .local_account import hour_price
from .log import set_level

if TYPE_CHECKING:
    from .context import Context

log = logging.getLogger(__name__)

# How often the file is looked at; it is taken when two looks saw the same.
WATCH_SECONDS = 0.5
# Everything else is built into processes, files and sockets.
RELOADABLE = frozenset(
    {
        "api_keys",
        "cache_no_store_patterns",
        "cache_prompts",
        "drain_timeout",
        "local_hour_price",
        "log_level",
        "routes",
        "unsupported",
        "upstreams",
        "write_timeout",
    }
)


def changed(before: Settings, after: Settings) -> list[str]:
    """The names of settings that differ.

    Raises ConfigError when one of them cannot be changed while serving.
    """
    names = [name for name in before.__struct_fields__ if getattr(before, name) != getattr(after, name)]
    if fixed := [name for name in names if name not in RELOADABLE]:
        raise ConfigError(
            f"{', '.join(fixed)} cannot be changed while serving; restart for it, or set it back. Nothing was changed.",
            param=fixed[0],
        )
    return names


def apply(context: "Context", settings: Settings) -> None:
    """Requests that run keep what they began with. Router files are read anew, too: a new one may lie where the old one was,
    and then no setting differs. Raises ConfigError, and then nothing has changed."""
    from .routing.state import router_of

    names = changed(context.settings, settings)
    accounts = {name: local.service.account for name, local in context.locals.items()}
    router = router_of(settings, context.backends, context.upstreams, accounts, context.drifts)
    if not names:
        before = {route.name: route.identity for route in context.router.learned}
        names = [
            f"router of routes.{route.name}"
            for route in router.learned
            if route.identity != before[route.name]
        ]
        if not names:
            return
    context.upstreams.replace(settings.upstreams)
    context.router = router
    context.settings = settings
    context.relay.keeping = keeping = Keeping.of(settings)
    for name, local in context.locals.items():
        local.service.account.set_price(hour_price(settings, name))
        local.service.keeping = keeping
    context.tenants.take_keys(settings.api_keys)
    set_level(settings.log_level)
    log.info("settings taken anew: %s", ", ".join(names))


class Watcher:
    """Notices that the settings file has changed, once it has lain still for a look: an editor may write it in pieces."""

    def __init__(self, source: SettingsSource) -> None:
        self._source = source
        self._taken = self._seen = source.stamp()

    def look(self) -> bool:
        """To be called every WATCH_SECONDS; True when the file should be read."""
        before, self._seen = self._seen, self._source.stamp()
        return self._seen is not None and self._seen == before and self._seen != self._taken

    def take(self, apply_: Callable[[Settings], None]) -> None:
        """Hands what the file holds to `apply_`. A file that is wrong is told of in the log, and changes nothing."""
        self._taken = self._seen = self._source.stamp()
        try:
            apply_(self._source.load())
        except PenstockError as error:
            log.error("The settings file is not taken: %s", error.message)
        except Exception:  # the next change is still to be noticed
            log.exception("The settings file is not taken")


async def follow(context: "Context", source: SettingsSource) -> None:
    """Takes the file whenever it has changed, and on SIGHUP."""
    hangup, watcher = asyncio.Event(), Watcher(source)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(WATCH_SECONDS):
                await hangup.wait()
        if watcher.look() or hangup.is_set():
            hangup.clear()
            watcher.take(lambda settings: apply(context, settings))
