"""Penstock's engine in this process, without speculation: random weights repeat themselves as no real model does."""

import sys
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import engine_worker
from worker import serve


class Penstock(engine_worker.Penstock):
    version = version("penstock")
    precision = "W8A8"

    def __init__(self, model: str, threads: int) -> None:
        super().__init__(model, "w8a8", threads, speculation="off")

    def close(self) -> None:
        """Nothing outlives the process."""


if __name__ == "__main__":
    serve(Penstock)
