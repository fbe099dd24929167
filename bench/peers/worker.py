"""The child's half of a measurement, the same for every engine: JSON lines in, JSON lines out.

Out, once, when the engine is loaded:   {"version": "...", "precision": "..."}
In, any number of times:                {"prompts": [[token ids], ...], "output_tokens": 128}
Out, for each:                          {"arrivals": [[seconds since the prompts were given, one a token], ...]}

Needs the standard library alone: it runs in the environments of all peers.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol


class PeerEngine(Protocol):
    version: str
    precision: str

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[float]]:
        """Complete all prompts at once, greedily; returns when each prompt's tokens came, by `time.perf_counter`.

        Every completion has `num_output_tokens` tokens, whatever the model says.
        """
        ...

    def close(self) -> None: ...


def serve(load: Callable[[str, int], PeerEngine]) -> None:
    """Make the engine by `load(model, threads)`, the command line's two arguments, and answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What engines print of themselves goes where errors go.
    model, threads = sys.argv[1:]
    engine = load(model, int(threads))
    print(json.dumps({"version": engine.version, "precision": engine.precision}), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        begun = time.perf_counter()
        arrivals = engine.run(asked["prompts"], asked["output_tokens"])
        print(json.dumps({"arrivals": [[at - begun for at in times] for times in arrivals]}), file=answers)
    engine.close()
