"""Settings that change while requests run, in `penstock serve` with one process and with two."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
from penstock_command import PENSTOCK
from quiet_server import QuietServer

PIECES = 20
PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class Answering(BaseHTTPRequestHandler):
    """Streams its server's name, in a second."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for _ in range(PIECES):
            self.wfile.write(PIECE % self.server.called)  # type: ignore[attr-defined]  # set below
            self.wfile.flush()
            time.sleep(1 / PIECES)
        self.wfile.write(END)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, str]]:
    """URLs of two that answer with their names."""
    servers = []
    for name in (b"a", b"b"):
        server = QuietServer(("127.0.0.1", 0), Answering)
        server.called = name  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
    yield {
        name: f"http://127.0.0.1:{server.server_port}/v1" for name, server in zip("ab", servers, strict=True)
    }
    for server in servers:
        server.shutdown()


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path, upstreams: dict[str, str]
) -> Iterator[tuple[str, Path, subprocess.Popen[str], Callable[[str], str]]]:
    def settings(target: str, more: str = "") -> str:
        return (
            f'model = "none"\nembedding_model = "none"\nport = 0\nworkers = {request.param}\n'
            f'cache_path = "{tmp_path}/cache"\n{more}\n'
            f'[upstreams.up]\nbase_url = "{upstreams[target]}"\nmodels = ["m"]\n'
        )

    file = tmp_path / "penstock.toml"
    file.write_text(settings("a"))
    process = subprocess.Popen(
        [*PENSTOCK, "serve", "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "log").open("w"),
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().split(" at ")[-1].strip()
    yield url, file, process, settings
    process.terminate()
    assert process.wait(20) == 0


def streamed(url: str) -> str:
    """Which upstream answered, over a connection of its own."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "?"}]}
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=20) as reply:
        text = reply.read().decode()
    assert text.endswith("[DONE]\n\n"), text
    (name,) = {name for name in ("a", "b") if f'"content":"{name}"' in text}
    assert text.count(f'"content":"{name}"') == PIECES
    return name


def wait_for(what: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("by", ["file", "SIGHUP"])
def test_a_change_reaches_new_requests_and_cuts_none(served, by: str, tmp_path: Path) -> None:
    url, file, process, settings = served
    running = []
    threads = [threading.Thread(target=lambda: running.append(streamed(url))) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    file.write_text(settings("b"))
    if by == "SIGHUP":
        os.kill(process.pid, signal.SIGHUP)
    for thread in threads:
        thread.join(20)
    assert running == ["a"] * 8, "what had begun went on where it was"
    wait_for(lambda: [streamed(url) for _ in range(3)] == ["b"] * 3)
    assert "settings taken anew: upstreams" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("max_num_seqs = 7", "max_num_seqs cannot be changed while serving"),
        ("speed = 9", "unknown setting 'speed'"),
        ('[routes.quick]\ntargets = ["nobody"]', "routes.quick names 'nobody'"),
        ("this is not TOML", "is not valid TOML"),
    ],
)
def test_a_wrong_file_changes_nothing_and_says_why(served, more: str, says: str, tmp_path: Path) -> None:
    url, file, process, settings = served
    file.write_text(settings("b", more) if not more.startswith("[") else settings("b") + more)
    os.kill(process.pid, signal.SIGHUP)
    wait_for(lambda: says in (tmp_path / "log").read_text())
    assert streamed(url) == "a"
    assert process.poll() is None


def test_a_worker_that_ends_after_a_wrong_file_is_replaced(served, tmp_path: Path) -> None:
    url, file, process, settings = served
    file.write_text(settings("b") + '[routes.quick]\ntargets = ["nobody"]')
    os.kill(process.pid, signal.SIGHUP)
    wait_for(lambda: "routes.quick names 'nobody'" in (tmp_path / "log").read_text())
    workers = [
        child for child in psutil.Process(process.pid).children() if "spawn_main" in "".join(child.cmdline())
    ]
    for worker in workers:
        worker.kill()
        wait_for(lambda worker=worker: not worker.is_running())
    wait_for(lambda: answers(url))
    assert [streamed(url) for _ in range(3)] == ["a"] * 3


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=2).status == 200
    except OSError:
        return False
