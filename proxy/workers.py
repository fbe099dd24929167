"""`--workers N`: one engine process per model, N HTTP processes on one port (SO_REUSEPORT), and a parent that keeps
them alive.
"""

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..config import NO_MODEL, Settings, SettingsSource
from ..errors import ModelLoadError, PenstockError
from ..models.embedding_location import choose_embedding_model
from ..scheduler import EmbedderProcess, EngineProcess, ModelInfo
from .reload import Watcher, apply, changed
from .server import address_of, engine_config, listen, tier_configs

if TYPE_CHECKING:
    from .context import Context

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
# A worker that dies this young was not killed by its work; so many in a row mean that it cannot run at all.
YOUNG_SECONDS = 5.0
MAX_YOUNG_DEATHS = 5
STOP_SECONDS = 5.0


class Addresses(msgspec.Struct, frozen=True):
    """Where the workers find what they share. None: there is no such model."""

    engine: str | None
    tiers: dict[str, str]
    embedder: str | None


class Serving(msgspec.Struct, frozen=True):
    """A worker answers now. `infos`: of the models served here, the main one first."""

    infos: dict[str, ModelInfo]


class Taken(msgspec.Struct, frozen=True):
    """A worker goes on with the settings that it was sent last."""


class _Worker:
    """One HTTP process. Its pipe brings a Serving once it serves, or the error that stopped it; and takes to it the settings
    that it shall go on with."""

    def __init__(self, settings: Settings, addresses: Addresses, metrics: Path, place: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.news, theirs = context.Pipe()
        self.started = time.monotonic()
        self.process: SpawnProcess = context.Process(
            target=_run_worker, args=(settings, addresses, metrics, place, theirs), name="penstock-worker"
        )
        self.process.start()
        theirs.close()

    def read_news(self) -> Serving | Taken | str | None:
        """What it has said since; None when nothing."""
        try:
            return self.news.recv() if self.news.poll() else None
        except (EOFError, OSError):
            return None


def serve_with_workers(
    settings: Settings, source: SettingsSource, *, on_ready: Callable[[str, dict[str, ModelInfo]], None]
) -> None:
    """Runs until SIGTERM or SIGINT; passes them on, so that every worker drains. Changed settings are handed to all workers.

    Raises ModelLoadError when the model cannot be served, ConfigError when the port cannot be had.
    """
    # Bound but never listening: it reserves the port for as long as the workers come and go.
    reserved = listen(settings, shared=True)
    asked_port = settings.port
    settings = msgspec.structs.replace(settings, port=reserved.getsockname()[1])
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: signals.append(received))
    hangups: list[int] = []
    signal.signal(signal.SIGHUP, lambda received, _frame: hangups.append(received))
    metrics = Path(tempfile.mkdtemp(prefix="penstock-metrics-"))
    engine = None if settings.model == NO_MODEL else EngineProcess(engine_config(settings))
    tiers = {name: EngineProcess(config) for name, config in tier_configs(settings).items()}
    engines = [*([] if engine is None else [engine]), *tiers.values()]
    embedding_model = choose_embedding_model(settings.embedding_model)
    embedder = None if embedding_model is None else EmbedderProcess(embedding_model)
    workers: list[_Worker] = []
    changes = Changes(settings, source, asked_port, hangups)
    try:
        for one in engines:
            one.start()
        addresses = Addresses(
            None if engine is None else engine.address,
            {name: tier.address for name, tier in tiers.items()},
            None if embedder is None else embedder.address,
        )
        workers = [_Worker(settings, addresses, metrics, place) for place in range(settings.workers)]
        _watch(
            engines,
            addresses,
            embedder,
            workers,
            metrics,
            signals,
            changes,
            lambda infos: on_ready(address_of(reserved), infos),
        )
    finally:
        _stop(workers, signals, changes.settings.drain_timeout)
        for one in engines:
            one.stop()
        if embedder is not None:
            embedder.stop()
        reserved.close()
        shutil.rmtree(metrics, ignore_errors=True)


class Changes:
    """Of the settings file, handed to all workers. What only they can check they check alike, having the same model.

    Args:
        port: as it was asked for, where another one was taken.
        hangups: a SIGHUP each.

    Attributes:
        settings: those that new workers begin with: what a worker has taken.
    """

    def __init__(self, settings: Settings, source: SettingsSource, port: int, hangups: list[int]) -> None:
        self.settings = self._offered = settings
        self._watcher = Watcher(source)
        self._port = port
        self._hangups = hangups
        self._due = time.monotonic() + WATCH_SECONDS

    def accepted(self) -> None:
        self.settings = self._offered

    def hand_on(self, workers: list[_Worker]) -> None:
        """To be called at least every WATCH_SECONDS."""
        found = False
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + WATCH_SECONDS
            found = self._watcher.look()
        if not (found or self._hangups):
            return
        self._hangups.clear()
        self._watcher.take(lambda read: self._offer(read, workers))

    def _offer(self, read: Settings, workers: list[_Worker]) -> None:
        if read.port == self._port:
            read = msgspec.structs.replace(read, port=self.settings.port)
        changed(self.settings, read)  # what cannot be changed is refused once, here
        # Also where no setting differs: what their router files say may, and workers read those.
        self._offered = read
        for worker in workers:
            with suppress(OSError):  # it has just ended
                worker.news.send(read)


def _watch(
    engines: list[EngineProcess],
    addresses: Addresses,
    embedder: EmbedderProcess | None,
    workers: list[_Worker],
    metrics: Path,
    signals: list[int],
    changes: Changes,
    on_ready: Callable[[dict[str, ModelInfo]], None],
) -> None:
    """Returns on a signal. Raises ModelLoadError when workers or engine cannot get going."""
    serving: set[int] = set()
    young_deaths = 0
    embedder_due = 0.0
    announced = False
    while not signals:
        watched: list[Any] = [worker.process.sentinel for worker in workers]
        watched += [worker.news for worker in workers]
        if embedder is not None and not embedder.alive and time.monotonic() >= embedder_due:
            watched.append(embedder)
        stirred: list[Any] = wait(watched, WATCH_SECONDS)
        if embedder is not None and any(one is embedder for one in stirred) and not signals:
            # Somebody waits for vectors, for the first time or since it died.
            embedder_due = time.monotonic() + WATCH_SECONDS
            embedder.start()
        changes.hand_on(workers)
        for place, worker in enumerate(workers):
            news = worker.read_news()
            if isinstance(news, str) and not announced:
                raise ModelLoadError(news)
            if isinstance(news, Taken):
                changes.accepted()
            if isinstance(news, Serving):
                serving.add(place)
                young_deaths = 0
                if len(serving) == len(workers) and not announced:
                    announced = True
                    on_ready(news.infos)
            if worker.process.is_alive() or signals:
                continue
            young = time.monotonic() - worker.started < YOUNG_SECONDS
            young_deaths = young_deaths + 1 if young else 0
            if young_deaths > MAX_YOUNG_DEATHS:
                raise PenstockError(
                    f"HTTP workers keep ending right after their start ({young_deaths} in a row)."
                )
            log.error(
                "HTTP worker %s ended (exit code %s); starting another",
                worker.process.pid,
                worker.process.exitcode,
            )
            worker.news.close()
            for file in metrics.glob(f"gauge_live*_{worker.process.pid}.db"):
                file.unlink()  # its counters go on counting; how it saw upstreams does not
            workers[place] = _Worker(changes.settings, addresses, metrics, place)
        for engine in engines:
            if engine.alive or signals:
                continue
            if not announced:
                raise ModelLoadError("The engine process ended while loading the model; its log says why.")
            log.error("the engine ended; starting it again")
            engine.start()


def _stop(workers: list[_Worker], signals: list[int], drain_timeout: float) -> None:
    """SIGTERM to all, SIGKILL to what has not ended when its drain should be over."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + drain_timeout + STOP_SECONDS
    hurried = False
    while any(worker.process.is_alive() for worker in workers) and time.monotonic() < deadline:
        wait([worker.process.sentinel for worker in workers if worker.process.is_alive()], 0.1)
        if len(signals) > 1 and not hurried:
            hurried = True
            for worker in workers:
                worker.process.terminate()  # their second signal, which ends the drain
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()
        worker.process.join()


def _run_worker(
    settings: Settings, addresses: Addresses, metrics: Path, place: int, news: Connection
) -> None:
    """The whole life of a worker process. The first one also listens for those who manage tenants: it has what that takes,
    an event loop and the tenants' folder, and the parent has neither."""
    # Ctrl-C reaches the whole terminal group; the parent hears it and tells us by SIGTERM, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The same for "read your settings anew".
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Read by prometheus-client when it is first imported, which is after this.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)

    import uvloop

    from ..scheduler import AsyncEmbedder, AsyncEngine
    from .log import set_up_logging
    from .server import serve

    set_up_logging(settings.log_level)

    async def run() -> None:
        _end_with_parent()
        engine = None if addresses.engine is None else AsyncEngine.connect(addresses.engine)
        tiers = {name: AsyncEngine.connect(address) for name, address in addresses.tiers.items()}
        embedder = None if addresses.embedder is None else AsyncEmbedder.connect(addresses.embedder)
        sock = listen(settings, shared=True)
        await serve(
            settings,
            engine,
            sock,
            embedder,
            tiers=tiers,
            on_serving=lambda context: _follow(context, news),
            on_ready=lambda backends: news.send(
                Serving({backend.name: backend.engine.info for backend in backends})
            ),
            manages=place == 0,
            shared_metrics=metrics,
            signals=(signal.SIGTERM,),
        )

    try:
        uvloop.run(run())
    except PenstockError as error:
        news.send(error.message)
        raise SystemExit(1) from None


async def _follow(context: "Context", news: Connection) -> None:
    """Takes the settings that the parent sends."""
    loop, sent = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(news.fileno(), sent.set)
    try:
        while True:
            await sent.wait()
            sent.clear()
            try:
                if news.poll():
                    apply(context, news.recv())
                    news.send(Taken())
            except PenstockError as error:
                log.error("The settings are not taken: %s", error.message)
            except Exception:  # the next ones are still to be taken
                log.exception("The settings are not taken")
    finally:
        loop.remove_reader(news.fileno())


def _end_with_parent() -> None:
    """A parent killed outright can pass nothing on; without it, this process would hold the port for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(parent.sentinel)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(parent.sentinel, gone)
