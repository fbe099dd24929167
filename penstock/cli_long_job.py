"""Commands that take minutes: how far they are, and a Ctrl-C that is never lost, nor another signal to end."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Terminated


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """A signal to end does so by a KeyboardInterrupt, which what this yields raises again where it was lost.

    Reading weights, safetensors loses a KeyboardInterrupt, or raises an error of its own in its place.
    """
    came: type[KeyboardInterrupt] | None = None

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = KeyboardInterrupt if number == signal.SIGINT else Terminated
        raise came

    def check() -> None:
        if came is not None:
            raise came

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield check
    except Exception as error:
        if came is not None:
            raise came from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bars(check: Callable[[], None]) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal's stderr for each part of the work. `check`: of `interruptible`."""
    from tqdm import tqdm

    bars: dict[str, tqdm] = {}

    def progress(part: str, done: int, of: int) -> None:
        check()
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
