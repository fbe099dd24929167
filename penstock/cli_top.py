"""`penstock top`: a running server's figures in the terminal, once a second."""

import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from .config import Settings
from .errors import PenstockError
from .proxy.observe.top_figures import Figures, Scrape, figures_of
from .top_frame import frame

TIMEOUT_SECONDS = 5.0
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_WIDTH_WITHOUT_TERMINAL = 100


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    url = (arguments.get("url") or f"http://{settings.host}:{settings.port}").rstrip("/").removesuffix("/v1")
    interval = max(0.1, float(arguments["interval"]))
    as_json = bool(arguments["json"])
    if as_json or arguments["once"]:
        before = _scrape(url)
        time.sleep(interval)
        figures = _figures(url, before, _scrape(url))
        print(json.dumps(msgspec.to_builtins(figures)) if as_json else _text(figures, url))
    elif sys.stdout.isatty() and sys.stdin.isatty():
        with _screen():
            _watch(url, interval)
    else:
        _print_frames(url, interval)
    return 0


def _watch(url: str, interval: float) -> None:
    """Until q is pressed. A server that does not answer is waited for."""
    before: Scrape | None = None
    while True:
        try:
            after = _scrape(url)
            lines = ["waiting for the first second..."] if before is None else _lines(url, before, after)
            before = after
        except PenstockError as error:
            lines, before = [error.message], None
        width, height = shutil.get_terminal_size()
        shown = "".join(f"{line[:width]}{_CLEAR_LINE}\r\n" for line in [*lines, "", "q: quit"][: height - 1])
        sys.stdout.write(_HOME + shown + _CLEAR_BELOW)
        sys.stdout.flush()
        if _quit_pressed(interval):
            return


def _print_frames(url: str, interval: float) -> None:
    """For a pipe: one frame after another, as long as it is read."""
    before = _scrape(url)
    while True:
        time.sleep(interval)
        after = _scrape(url)
        print(_text(_figures(url, before, after), url), end="\n\n", flush=True)
        before = after


def _lines(url: str, before: Scrape, after: Scrape) -> list[str]:
    return frame(_figures(url, before, after), url=url, width=shutil.get_terminal_size().columns)


def _text(figures: Figures, url: str) -> str:
    width = shutil.get_terminal_size((_WIDTH_WITHOUT_TERMINAL, 0)).columns
    return "\n".join(frame(figures, url=url, width=width))


def _figures(url: str, before: Scrape, after: Scrape) -> Figures:
    ready = _ready(url)
    return figures_of(before, after, ready=str(ready.get("status", "unknown")), model=ready.get("model"))


def _scrape(url: str) -> Scrape:
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=TIMEOUT_SECONDS) as reply:
            text = reply.read().decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PenstockError(
            f"{url}/metrics does not answer ({reason}); name a running server, as penstock top http://host:port."
        ) from error
    return Scrape(text_string_to_metric_families(text), time.monotonic())


def _ready(url: str) -> dict[str, Any]:
    """What the server says of itself, also while it cannot take requests."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=TIMEOUT_SECONDS) as reply:
            said = json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            said = _decoded(error.read())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _decoded(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _quit_pressed(seconds: float) -> bool:
    """Waits for a key as long as a frame stands."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not select.select([sys.stdin], [], [], left)[0]:
            return False
        keys = os.read(sys.stdin.fileno(), 64)
        if not keys or keys.lower().startswith(b"q"):  # the terminal is gone, or q
            return True
    return False


@contextmanager
def _screen() -> Iterator[None]:
    """The terminal's other screen, without echo and line editing; given back as it was, however it ends."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write(_ENTER)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
