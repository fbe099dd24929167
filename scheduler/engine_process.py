"""Starts, watches and stops an engine: a child process, or a thread for embedding. Imports no torch."""

import os
import threading

from .engine_config import EngineConfig
from .host import STOP_SECONDS, ChildProcess, Host

NAME = "engine"


class EngineProcess(ChildProcess):
    """The engine in a child process."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(NAME, "engine_server", config)


class EngineThread(Host):
    """The same engine in a thread of this process, for embedding."""

    _thread: threading.Thread | None = None
    _lifeline: int = -1

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(NAME)
        self.config = config

    def start(self) -> None:
        from .engine_server import serve_engine

        reader, self._lifeline = os.pipe()

        def run() -> None:
            try:
                serve_engine(self.config, self._listener.dup(), reader)
            finally:
                os.close(reader)

        self._thread = threading.Thread(target=run, name="penstock-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            os.close(self._lifeline)
            thread.join(STOP_SECONDS)
        super().stop()
