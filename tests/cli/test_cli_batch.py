"""`penstock batch`: a file of API requests, answered here or by a server, cut and gone on with."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from penstock_command import PENSTOCK
from quiet_server import QuietServer
from tiny_model import write_tiny_model

from penstock.cli import main

KEY = re.compile(r"psk-[0-9a-f]{12}-[A-Za-z0-9_-]{43}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("batch") / "tiny")


def batch(*arguments: str | Path, check: int = 0) -> str:
    done = subprocess.run(
        [*PENSTOCK, "batch", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Of what never gets as far as a server."""
    assert main(["batch", *map(str, arguments)]) == 1
    told = capsys.readouterr().err
    assert len(told.strip().splitlines()) == 1
    return told


def line(custom_id: str, url: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "tiny", **body}}


def write(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return file


def results(file: Path) -> dict[str, dict[str, Any]]:
    read = [json.loads(text) for text in file.read_text().splitlines()]
    found = {result["custom_id"]: result for result in read}
    assert len(found) == len(read), "one line for each request"
    return found


def test_whatever_the_server_serves_can_be_in_a_batch(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenants = ("--tenants-path", str(tmp_path / "tenants"))
    assert main(["keys", "create", "acme", *tenants]) == 0
    key = KEY.search(capsys.readouterr().out)
    assert key is not None
    ask = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    lines = [
        line("chat", "/v1/chat/completions", **ask),
        line("completion", "/v1/completions", prompt="abc", max_tokens=3),
        line("response", "/v1/responses", input="hi", max_output_tokens=4, temperature=0),
        line("wrong", "/v1/chat/completions", **ask | {"temperature": -1}),
        line("nowhere", "/v1/nowhere"),
        line("streamed", "/v1/chat/completions", **ask, stream=True),
    ]
    source, output, errors = write(tmp_path / "in", lines), tmp_path / "out", tmp_path / "err"
    here = ("--model", model, "--cache-path", tmp_path / "cache", "--embedding-model", "none", *tenants)
    told = batch(source, "--output", output, "--errors", errors, *here, check=1)
    assert f"3 of 6 requests failed; see {errors}." in told
    good, bad = results(output), results(errors)
    assert good.keys() == {"chat", "completion", "response"}
    for result in good.values():
        assert result["error"] is None and result["id"].startswith("batch_req_")
        assert result["response"]["status_code"] == 200 and result["response"]["request_id"]
    said = good["chat"]["response"]["body"]["choices"][0]["message"]["content"]
    assert good["response"]["response"]["body"]["output"][0]["content"][0]["text"] == said
    assert bad["wrong"]["response"]["status_code"] == 400
    assert "temperature is -1" in bad["wrong"]["response"]["body"]["error"]["message"]
    assert bad["nowhere"]["response"]["status_code"] == 404
    assert bad["streamed"]["response"] is None and "leave out 'stream'" in bad["streamed"]["error"]["message"]

    # What failed is asked again, and so is what a kill tore; what was answered is left alone. This time as a tenant.
    kept = output.read_text().splitlines()[:2]
    output.write_text("\n".join([*kept, '{"id":"batch_req_5","cust']))
    for each in lines:
        each["body"] |= {"temperature": 0}
        each["body"].pop("stream", None)
    known = ("--api-key", key[0])
    batch(write(source, lines), "--output", output, "--errors", errors, *here, *known, check=1)
    assert main(["keys", "usage", "--json", *tenants]) == 0
    (used,) = json.loads(capsys.readouterr().out)
    assert (used["tenant"], used["model"], used["requests"]) == ("acme", "tiny", 3)
    assert output.read_text().splitlines()[:2] == kept
    assert results(output).keys() == {"chat", "completion", "response", "wrong", "streamed"}
    assert results(errors).keys() == {"nowhere"}
    batch(write(source, lines[:4]), "--output", output, "--errors", errors, *here)  # nothing is left to do


WRONG = {
    "not json": ('{"custom_id": ', "line 1"),
    "no url": ('{"custom_id": "a", "method": "POST", "body": {}}', "missing required field `url`"),
    "a method": (
        '{"custom_id": "a", "method": "GET", "url": "/v1/models", "body": {}}',
        "'GET'",
    ),
    "another host": (
        '{"custom_id": "a", "method": "POST", "url": "//elsewhere/v1/x", "body": {}}',
        "must begin with /v1/",
    ),
    "twice": (
        '{"custom_id": "a", "method": "POST", "url": "/v1/x", "body": {}}\n' * 2,
        "is also that of line 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_before_anything_is_sent(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = WRONG[name]
    (tmp_path / "in").write_text(content)
    assert says in refusal(capsys, tmp_path / "in", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ['{"precious": 1}\n', '{"precious": 1}', "words", "\n"])
def test_a_file_of_something_else_is_not_written_over(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, other = write(tmp_path / "in", [line("a", "/v1/x")]), tmp_path / "other"
    other.write_text(content)
    for files in (("--output", other), ("--output", tmp_path / "out", "--errors", other)):
        assert "line 1: no result of a batch" in refusal(capsys, source, *files)
    assert other.read_text() == content


def test_where_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", [line("a", "/v1/x")])
    assert "write to another file" in refusal(capsys, source, "--output", source)
    assert "cannot be written: No such file" in refusal(capsys, source, "--output", tmp_path / "no" / "out")


class Elsewhere(BaseHTTPRequestHandler):
    """Refuses each request once as too many, and answers what it was asked; slowly where it is told to."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "elsewhere"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first = body["n"] not in [n for n, _ in self.seen]
        self.seen.append((body["n"], self.headers["Authorization"]))
        if body.get("wait") or (first and not body.get("slow")):
            self._reply(429, {"error": {"message": "too many"}}, body.get("wait", "0.05"))
        else:
            time.sleep(body.get("slow", 0))
            self._reply(200, {"path": self.path, "n": body["n"], "text": "a\u2028b"})

    def _reply(self, status: int, body: dict[str, Any], retry_after: str = "0") -> None:
        content = json.dumps(body, indent=1, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, type[Elsewhere]]]:
    handler = type("Handler", (Elsewhere,), {"seen": []})
    server = QuietServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()
    server.server_close()


def test_a_server_elsewhere_that_limits_rates(elsewhere: tuple[str, type[Elsewhere]], tmp_path: Path) -> None:
    url, handler = elsewhere
    source = write(tmp_path / "in", [line(f"é{n}", "/v1/any/thing", n=n) for n in range(20)])
    batch(source, "--output", tmp_path / "out", "--url", url, "--api-key", "k", "--concurrency", "5")
    found = results(tmp_path / "out")
    assert {name: result["response"]["body"]["n"] for name, result in found.items()} == {
        f"é{n}": n for n in range(20)
    }
    assert {result["response"]["body"]["path"] for result in found.values()} == {"/v1/any/thing"}
    assert len(handler.seen) == 40 and {key for _, key in handler.seen} == {"Bearer k"}


def test_what_must_wait_long_is_for_another_run(
    elsewhere: tuple[str, type[Elsewhere]], tmp_path: Path
) -> None:
    url, handler = elsewhere
    source = write(tmp_path / "in", [line("a", "/v1/x", n=1, wait="3600")])
    batch(source, "--output", tmp_path / "out", "--url", url, check=1)
    assert results(tmp_path / "out")["a"]["response"]["status_code"] == 429
    assert len(handler.seen) == 1


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    source = write(tmp_path / "in", [line("a", "/v1/x")])
    told = batch(source, "--output", tmp_path / "out", "--url", "http://127.0.0.1:9", check=1)
    assert "cannot be reached" in told and len(told.strip().splitlines()) == 1


def test_ctrl_c_leaves_a_file_to_go_on_from(elsewhere: tuple[str, type[Elsewhere]], tmp_path: Path) -> None:
    url, handler = elsewhere
    source = write(
        tmp_path / "in", [line(str(n), "/v1/x", n=n, slow=0.001 if n < 5 else 20) for n in range(9)]
    )
    arguments = [*PENSTOCK, "batch", str(source), "--output", str(tmp_path / "out"), "--url", url]
    process = subprocess.Popen(
        [*arguments, "--concurrency", "2"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores it, and passes that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 20
    while len(handler.seen) < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130 and "goes on from here" in told and "Traceback" not in told
    assert results(tmp_path / "out").keys() == {"0", "1", "2", "3", "4"}
    write(source, [line(str(n), "/v1/x", n=n, slow=0.001) for n in range(9)])
    batch(source, "--output", tmp_path / "out", "--url", url)
    assert len(results(tmp_path / "out")) == 9
    assert [n for n, _ in handler.seen].count(0) == 1, "asked once in all"
