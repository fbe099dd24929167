"""Commands that take minutes: how far they are, and a Ctrl-C that is never lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came, which ends the block as it does otherwise.

    Reading weights, safetensors loses a KeyboardInterrupt, or raises an error of its own in its place.
    """
    came = False

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bars(was_interrupted: Callable[[], bool]) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal's stderr for each part of the work."""
    from tqdm import tqdm

    bars: dict[str, tqdm] = {}

    def progress(part: str, done: int, of: int) -> None:
        if was_interrupted():
            raise KeyboardInterrupt
        if part not in bars:
            for bar in bars.values():
                bar.close()
            bars[part] = tqdm(desc=part, disable=None)
        bar = bars[part]
        bar.total = of
        bar.n = done
        bar.refresh()

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()
