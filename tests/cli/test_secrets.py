"""No key is seen anywhere but in the header that it belongs to: a server is given keys that are easy to find, is driven
through successes and failures at its most talkative, and everything it has said and written is searched for them.
"""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest
from penstock_command import PENSTOCK
from quiet_server import QuietServer
from tiny_model import write_tiny_model

from penstock.config import Settings, load_settings
from penstock.errors import ConfigError
from penstock.tables import Secret, Upstream

CANARIES = {
    "client": "canary-client-7f3a9c51d2",
    "second client": "canary-second-0b6e4d8812",
    "wrong client": "canary-wrong-93c7aa5e10",
    "admin": "canary-admin-a2b90f6c41",
    "upstream": "canary-upstream-e58d21b4f6",
    "upstream file": "canary-file-4c19f7d3a0",
}


def spellings(key: str) -> dict[str, bytes]:
    raw = key.encode()
    return {
        "as it is": raw,
        "base64": base64.b64encode(raw).rstrip(b"=")[:-1],
        "hex": raw.hex().encode(),
        "quoted": urllib.parse.quote(key.replace("-", "%2D")).encode(),
        "backwards": raw[::-1],
    }


def assert_silent(sinks: dict[str, bytes]) -> None:
    found = [
        f"{sink} shows the {whose} key ({how})"
        for sink, content in sinks.items()
        for whose, key in CANARIES.items()
        for how, spelling in spellings(key).items()
        if spelling in content
    ]
    assert not found, "\n".join(found)


class Faulty(BaseHTTPRequestHandler):
    """An upstream that fails in another way for each model, and repeats the key that it was sent, as some do."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(self.requestline.encode() + self.headers.as_bytes() + sent)
        body = json.loads(sent)
        key = self.headers.get("Authorization", "")
        status = {"unauthorised": 401, "broken": 500, "odd": 200}.get(body["model"], 400)
        content = json.dumps({"error": {"message": f"Incorrect API key provided: {key}", "type": "x"}})
        if body["model"] == "odd":
            content = "this is not JSON"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Key", key)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[int]:
    server = QuietServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def request(port: int, method: str, path: str, body: object = None, key: str = "", **headers: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = {**headers, **({"Authorization": f"Bearer {key}"} if key else {})}
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, sent)
    reply = connection.getresponse()
    said = f"{reply.status} {reply.reason}\n{reply.headers}\n".encode() + reply.read()
    connection.close()
    return said


def test_a_server_keeps_its_keys_to_itself(
    tmp_path: Path, upstream: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    admin_port = free_port()
    key_file = tmp_path / "key"
    key_file.write_text(CANARIES["upstream file"])
    config = tmp_path / "penstock.toml"
    config.write_text(
        f"""
        model = "{model}"
        port = 0
        log_level = "debug"
        access_log = true
        cache_path = "{tmp_path / "cache"}"
        embedding_model = "none"
        tenants_path = "{tmp_path / "tenants"}"
        admin_port = {admin_port}
        admin_key = "{CANARIES["admin"]}"
        api_keys = ["{CANARIES["client"]}", "{CANARIES["second client"]}"]
        [upstreams.one]
        base_url = "http://127.0.0.1:{upstream}/v1"
        api_key_env = "UPSTREAM_KEY"
        retries = 0
        models = ["unauthorised", "broken", "odd", "refused"]
        [upstreams.two]
        base_url = "http://127.0.0.1:{upstream}/v1"
        api_key_file = "{key_file}"
        retries = 0
        models = ["broken2"]
        """
    )
    log = tmp_path / "log"
    environment = {**os.environ, "UPSTREAM_KEY": CANARIES["upstream"]}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*PENSTOCK, "serve", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
    sinks: dict[str, bytes] = {}
    try:
        assert process.stdout is not None
        announced = process.stdout.readline()
        port = int(announced.decode().rstrip().rpartition(":")[2])
        sinks["command line"] = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        made = manage(admin_port)
        monkeypatch.setitem(CANARIES, "made", made["key"])
        sinks["replies"] = b"\n".join([*drive(port), *drive_admin(admin_port, made["id"])])
        process.send_signal(signal.SIGHUP)  # the file is read again
        config.write_text(config.read_text().replace("port = 0", "port = 'x'"))
        process.send_signal(signal.SIGHUP)
        sinks["replies after a reload"] = request(port, "GET", "/v1/models", key=CANARIES["client"])
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=30)
    sinks["stdout"] = announced + rest
    sinks["stderr"] = log.read_bytes()
    for folder in ("cache", "tenants"):
        files = [file for file in (tmp_path / folder).rglob("*") if file.is_file()]
        assert any(file.name == "data.mdb" for file in files)
        sinks |= {f"{folder}: {file.name}": file.read_bytes() for file in files}
    assert len(sinks["stderr"]) > 2000
    for arguments in (["doctor"], ["doctor", "--json"]):
        done = subprocess.run(
            [*PENSTOCK, *arguments, "--config", str(config)], capture_output=True, env=environment, timeout=60
        )
        sinks[" ".join(arguments)] = done.stdout + done.stderr
    assert b"Incorrect API key provided: Bearer ..." in sinks["replies"], (
        "its refusals are told, without the key"
    )
    assert_silent(sinks)
    received = b"\n".join(Faulty.received)
    assert CANARIES["upstream"].encode() in received and CANARIES["upstream file"].encode() in received
    assert not any(CANARIES[whose].encode() in received for whose in ("client", "second client", "made")), (
        "they stay here"
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def manage(port: int) -> dict[str, str]:
    """A tenant and its key, which this one reply, and nothing after it, tells."""
    put = request(port, "PUT", "/tenants/acme", {"weight": 2}, CANARIES["admin"])
    assert put.startswith(b"20"), put
    reply = request(port, "POST", "/tenants/acme/keys", {"label": "ci"}, CANARIES["admin"])
    assert reply.startswith(b"201"), reply
    made: dict[str, str] = json.loads(reply[reply.index(b"{") :])
    return made


def drive_admin(port: int, identity: str) -> Iterator[bytes]:
    for key in (CANARIES["admin"], CANARIES["wrong client"], CANARIES["made"]):
        for path in ("/tenants", "/tenants/acme", "/tenants/nobody", "/usage", "/keys/nothing", "/nowhere"):
            for method in ("GET", "PUT", "POST", "DELETE"):
                if not (method == "DELETE" and path == "/tenants/acme"):
                    yield request(port, method, path, {}, key)
    yield request(port, "DELETE", f"/keys/{identity}", key=CANARIES["admin"])


def drive(port: int) -> Iterator[bytes]:
    """Everything that could make a server talk."""
    right, wrong = CANARIES["client"], CANARIES["wrong client"]
    hello = [{"role": "user", "content": "hi"}]
    chat = "/v1/chat/completions"
    ours = {"model": "tiny", "messages": hello, "max_tokens": 2, "temperature": 0}
    for key in (right, CANARIES["second client"], CANARIES["made"]):
        for _ in range(2):  # the second is a hit of the cache
            yield request(port, "POST", chat, ours, key)
        yield request(port, "POST", chat, {**ours, "stream": True, "seed": 1}, key)
        yield request(port, "POST", "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2}, key)
        yield request(port, "GET", "/v1/models", key=key)
        for model in ("unauthorised", "broken", "odd", "refused", "broken2", "nobody"):
            for stream in (False, True):
                yield request(port, "POST", chat, {"model": model, "messages": hello, "stream": stream}, key)
    for path in (chat, "/v1/models", "/nowhere", "/v1/models/x", "/tokenize"):
        for method in ("GET", "POST", "PUT"):
            for headers in ({"key": wrong}, {"Authorization": wrong}, {"Authorization": f"Basic {wrong}"}):
                yield request(port, method, path, {}, **headers)
            yield request(port, method, path, {}, right)
    for broken in (b"{", b"\xff", b"[" * 5000):
        yield request(port, "POST", chat, broken, right)
    yield request(port, "POST", chat, ours, right, **{"Content-Encoding": "gzip"})
    yield request(port, "POST", chat, ours, right, **{"x-penstock-cache-control": "nonsense"})
    yield request(port, "GET", "/" + "x" * 9000, key=right)
    for path in ("/metrics", "/health", "/health/ready", "/health/live", "/openapi.json"):
        yield request(port, "GET", path, key=right)


def test_representations_show_no_key() -> None:
    key = CANARIES["client"]
    settings = Settings(
        api_keys=(key,), upstreams={"one": Upstream(base_url="http://x/v1", api_key=Secret(key))}
    )
    assert_silent(
        {"repr": repr(settings).encode(), "str": str(settings).encode(), "format": f"{settings}".encode()}
    )
    assert "api_keys=" in repr(settings) and "port=8000" in repr(settings)


@pytest.mark.parametrize(
    "toml",
    [
        f'api_keys = "{CANARIES["client"]}"',
        f'api_keys = ["{CANARIES["client"]}", 1]',
        f'[upstreams.one]\nbase_url = "http://x/v1"\napi_key = "{CANARIES["upstream"]}"',
        f'[upstreams.one]\nbase_url = "http://x/v1"\napi_key = {{value = "{CANARIES["upstream"]}"}}',
    ],
)
def test_a_wrong_settings_file_is_not_quoted_where_keys_are(tmp_path: Path, toml: str) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_settings({"config": str(file)}, {})
    assert_silent({"message": str(caught.value).encode(), "cause": repr(caught.value.__cause__).encode()})
