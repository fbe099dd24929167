"""The `penstock` command as a user runs it, in processes of its own."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest
from penstock_command import PENSTOCK, start
from quiet_server import QuietServer
from tiny_encoder import write_tiny_encoder
from tiny_model import write_tiny_model

from penstock.proxy.metrics import SHOWN_SECONDS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cli") / "tiny")


def run(*arguments: str, text: str = "", check: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*PENSTOCK, *arguments], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_help_is_quick() -> None:
    """By the time that it computes: it waits for nobody, and what else runs here does not count."""

    def of_children() -> float:
        return sum(os.times()[2:4])

    times = []
    for _ in range(5):
        before = of_children()
        run("--help")
        times.append(of_children() - before)
    assert min(times) < 0.3, times


def test_version() -> None:
    assert run("version").stdout.startswith("penstock 0.")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "COMMAND"),
        (("server",), 2, "invalid choice"),
        (("serve", "--prot", "1"), 2, "--prot"),
        (("serve", "--port", "x"), 1, "--port: port is 'x'; it must be a whole number."),
        (("serve", "--model", "./nowhere", "--no-cache", "--port", "0"), 1, "no such folder"),
        (("serve", "--model-aliases", "a=b", "--port", "0"), 1, "not served"),
        (("eval",), 2, "WHAT"),
        (
            ("eval", "sparse", "--mass", "0.9,2"),
            1,
            "mass is '0.9,2'; it must be numbers above 0 and at most 1",
        ),
        (("eval", "sparse", "--needles", "0"), 1, "needles is 0; it must be at least 1"),
        (("eval", "sparse", "--text", "./nowhere"), 1, "nowhere cannot be read"),
        (("complete",), 1, "either a text"),
        (("complete", "x", "--model", "./nowhere"), 1, "no such folder"),
        (("complete", "x", "--url", "http://127.0.0.1:9"), 1, "cannot be reached"),
        (("complete", "x", "--url", "localhost:9"), 1, "url is 'localhost:9'; write it as http://host:port."),
        (("complete", "--input", "/no/such", "--output", "x"), 1, "cannot be read"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: tuple[str, ...], code: int, says: str) -> None:
    done = run(*arguments, check=code)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_batch_goes_on_where_it_was(
    model: Path, served: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Begun with a model here, cut, and finished by a server."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"prompt": f"line {number}", "max_tokens": number} for number in range(1, 6)]
    lines += [{"id": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}]
    lines += [{"id": "bad", "prompt": "x", "temperature": -1}]
    source.write_text("\n".join(map(json.dumps, lines)))
    files = ("--input", str(source), "--output", str(output))
    done = run("complete", "--model", str(model), *files, check=1)
    assert "1 of 7 lines failed" in done.stderr
    results = {result["id"]: result for result in map(json.loads, output.read_text().splitlines())}
    assert results.keys() == {1, 2, 3, 4, 5, "chat", "bad"}
    assert [results[number]["completion_tokens"] for number in range(1, 6)] == [1, 2, 3, 4, 5]
    assert "temperature is -1" in results["bad"]["error"]

    # The torn line and the failed one are done again, the rest is left alone.
    kept = output.read_text().splitlines()[:3]
    output.write_text("\n".join(kept) + '\n{"id": "torn')
    lines[-1].pop("temperature")
    source.write_text("\n".join(map(json.dumps, lines)))
    run("complete", "--url", served[0], *files)
    assert output.read_text().splitlines()[:3] == kept
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert {result["id"] for result in again if "error" not in result} == {1, 2, 3, 4, 5, "chat", "bad"}
    assert len(again) == 7 + sum("error" in json.loads(line) for line in kept)


@pytest.fixture(scope="module")
def served(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Two workers, one engine, one embedder."""
    encoder = write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny-encoder")
    process, url = start(
        "--embedding-model",
        str(encoder),
        "--model",
        str(model),
        "--workers",
        "2",
        "--cache-path",
        str(tmp_path_factory.mktemp("served") / "cache"),
    )
    yield url, process
    process.terminate()
    assert process.wait(20) == 0


def post(url: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(url, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


ASK: dict[str, object] = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "temperature": 0}


def test_a_wrong_line_of_a_batch_fails_alone(model: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"id": "number", "prompt": 5},
        {"id": "two", "prompt": "abc", "n": 2},
        {"id": "stop", "prompt": "abc", "stop": "zzz", "max_tokens": 3},
        {"id": "bias", "prompt": "abc", "logit_bias": {"65": 100}, "max_tokens": 3},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("complete", "--model", str(model), "--input", str(source), "--output", str(output), check=1)
    assert "2 of 4 lines failed" in done.stderr
    results = {result["id"]: result for result in map(json.loads, output.read_text().splitlines())}
    assert results["number"]["error"] == "prompt must be a text."
    assert "n is 2" in results["two"]["error"]
    assert results["stop"]["completion_tokens"] == 3
    assert results["bias"]["text"] == "bbb"


def children(process: subprocess.Popen[str], part: str) -> list[int]:
    found = []
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if part in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def test_complete_and_chat_with_a_server(served: tuple[str, subprocess.Popen[str]]) -> None:
    url, _ = served
    done = run("complete", "abc", "--url", url, "--max-tokens", "3")
    status, reply = post(url + "/v1/completions", ASK)
    assert status == 200
    assert done.stdout == reply["choices"][0]["text"] + "\n"  # type: ignore[index]
    said = run("chat", "--url", url + "/v1", "--max-tokens", "3", text="hello\n/reset\nagain\n/what\n/exit\n")
    assert said.stdout.count("[cut:") == 2
    assert "/reset forgets" in said.stdout
    refused = run("complete", "abc", "--url", url, "--temperature", "-1", check=1)
    assert "temperature is -1" in refused.stderr


def test_workers_share_one_embedder_that_is_replaced(served: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = served
    asked: dict[str, object] = {"model": "tiny-encoder", "input": ["a question", ""]}
    status, first = post(f"{url}/v1/embeddings", asked)
    assert status == 200 and len(first["data"]) == 2  # type: ignore[arg-type]
    (embedder,) = children(process, "embedder_server")
    # Each new connection reaches one of the workers by chance.
    assert all(post(f"{url}/v1/embeddings", asked) == (200, first) for _ in range(12))
    os.kill(embedder, signal.SIGKILL)
    assert all(post(f"{url}/v1/embeddings", asked) == (200, first) for _ in range(12))
    (again,) = children(process, "embedder_server")
    assert again != embedder


# A worker shows the others what it has counted a moment later.
SHOWN = 10 * SHOWN_SECONDS


def test_workers_share_figures_and_are_replaced(served: tuple[str, subprocess.Popen[str]]) -> None:
    url, process = served

    def asked() -> float:
        with urllib.request.urlopen(url + "/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        name = 'penstock_http_requests_total{route="/v1/completions",status="200"}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    time.sleep(SHOWN)
    before = asked()
    for _ in range(8):
        assert post(url + "/v1/completions", ASK)[0] == 200
    time.sleep(SHOWN)
    assert {asked() for _ in range(6)} == {before + 8}, "whichever worker answers"
    workers = children(process, "spawn_main")
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(set(children(process, "spawn_main")) - {workers[0]}) < 2:
        time.sleep(0.05)
    assert len(set(children(process, "spawn_main")) - {workers[0]}) == 2
    for _ in range(4):
        assert post(url + "/v1/completions", ASK)[0] == 200
    time.sleep(SHOWN)
    assert asked() == before + 12, "what the dead worker counted still counts"


def listens(pid: int) -> bool:
    connections = psutil.Process(pid).net_connections("tcp")
    return any(connection.status == psutil.CONN_LISTEN for connection in connections)


def every_worker_is_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Each new connection reaches one of the listening workers by chance: 20 good answers in a row were all of them."""
    good, deadline = 0, time.monotonic() + 20
    while not all(map(listens, children(process, "spawn_main"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while good < 20:
        assert time.monotonic() < deadline
        try:
            with urllib.request.urlopen(url + "/health/ready", timeout=5):
                good += 1
        except urllib.error.HTTPError:
            good = 0
            time.sleep(0.05)


def test_a_dead_engine_is_replaced(served: tuple[str, subprocess.Popen[str]]) -> None:
    """Meanwhile, what is cached is still answered, and what is not waits for the next engine."""
    url, process = served
    kept = {**ASK, "logit_bias": {"256": 100}}
    assert post(url + "/v1/completions", kept)[0] == 200
    every_worker_is_ready(url, process)
    (engine,) = children(process, "engine_server")
    os.kill(engine, signal.SIGKILL)
    time.sleep(0.2)
    assert post(url + "/v1/completions", kept)[0] == 200
    for prompt in ("new", "newer"):
        assert post(url + "/v1/completions", {**ASK, "prompt": prompt})[0] == 200
    (next_engine,) = children(process, "engine_server")
    assert next_engine != engine


def test_ctrl_c_drains_and_everything_ends(model: Path) -> None:
    """Ctrl-C reaches the whole process group, engine and all; the stream still comes to its end."""
    process, url = start("--model", str(model), "--no-cache")
    body = {**ASK, "max_tokens": 400, "ignore_eos": True, "stream": True}
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as reply:
        reply.readline()
        os.killpg(process.pid, signal.SIGINT)
        rest = reply.read().decode()
    assert rest.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in rest
    assert process.wait(20) == 0


class SlowTalker(BaseHTTPRequestHandler):
    """A word every 50 ms for 20 s: no machine is so loaded that the answer ends before Ctrl-C comes."""

    def do_GET(self) -> None:
        body = b'{"data": [{"id": "slow"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                self.wfile.write(
                    b'data: {"choices": [{"delta": {"content": "word "}, "finish_reason": null}]}\n\n'
                )
                time.sleep(0.05)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_ctrl_c_stops_an_answer_and_not_the_conversation() -> None:
    """In a terminal of its own, where Ctrl-C is a signal to everything in it."""
    server = QuietServer(("127.0.0.1", 0), SlowTalker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # a shell's background job ignores it, and passes that on
        os.execv(sys.executable, [*PENSTOCK, "chat", "--url", url])
    try:
        read_until(terminal, b"> ")
        for _ in range(2):
            os.write(terminal, b"tell me more\n")
            read_until(terminal, b"word ")
            os.write(terminal, b"\x03")
            read_until(terminal, b"[stopped]\r\n> ")
        os.write(terminal, b"/exit\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        os.close(terminal)
        server.shutdown()
        server.server_close()


def read_until(terminal: int, end: bytes) -> None:
    seen = b""
    deadline = time.monotonic() + 20
    while end not in seen:
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], seen
        seen += os.read(terminal, 4096)
