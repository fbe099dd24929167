"""`penstock doctor` says what is wrong, and what to do; each check alone, and the command once."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest
from penstock_command import PENSTOCK
from quiet_server import QuietServer
from simple_router import write_router

from penstock import cli_doctor, doctor
from penstock.config import Settings
from penstock.doctor import Finding
from penstock.native_build import KERNEL_CHIPS
from penstock.proxy.tenants.tenant import Tenant
from penstock.proxy.tenants.tenants import TenantStore
from penstock.tables import Route, Secret, Tier, Upstream


def only(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    assert bool(found.remedy) == (found.level != "ok"), "what is amiss has a remedy, and nothing else"
    return found


def settings(tmp_path: Path, **given: Any) -> Settings:
    return Settings(**{"port": 0, "cache_path": tmp_path / "completions", **given})


def test_the_command(tmp_path: Path) -> None:
    options = ["--cache-path", str(tmp_path / "c"), "--port", "0", "--api-keys", "secret-of-the-test"]
    done = subprocess.run([*PENSTOCK, "doctor", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok    settings: ") and lines[1].startswith("warn  secrecy: ")
    looked_at = {line[6:].partition(":")[0] for line in lines}
    assert looked_at >= {
        "address",
        "keys",
        "model",
        "processor",
        "gpu",
        "cache",
        "tenants",
        "embeddings",
        "clock",
    }
    assert "secret-of-the-test" not in done.stdout + done.stderr
    assert not (tmp_path / "c").exists(), "nothing is changed"


@pytest.mark.parametrize("name", ["builtin", "./nowhere"])
def test_as_json(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (doctor.model, doctor.clock))
    failed = cli_doctor.run({"json": True, "model": name}, {"PENSTOCK_PORT": "0"})
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (not failed) == (name == "builtin")
    assert [check["check"] for check in told["checks"]] == ["settings", "model", "clock"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("prot = 1", "did you mean 'port'?"), ("port = ", "TOML"), ("port = 'x'", "whole number")],
)
def test_settings_that_cannot_be_read(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text(content)
    done = subprocess.run(
        [*PENSTOCK, "doctor", "--config", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert line.startswith("fail  settings: ") and says in line


def test_a_settings_file_with_keys_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.touch()
    file.chmod(0o644)
    assert only(cli_doctor._secrecy(file, {}, has_keys=True)).remedy == f"chmod 600 {file}"
    assert not list(cli_doctor._secrecy(file, {}, has_keys=False))
    file.chmod(0o600)
    assert not list(cli_doctor._secrecy(file, {}, has_keys=True))


def test_an_address(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert only(doctor.address(settings(tmp_path))).level == "ok"
    assert only(doctor.address(settings(tmp_path, port=port))).level == "ok"


@pytest.mark.parametrize(("server", "level"), [("penstock", "ok"), ("other", "fail")])
def test_an_address_where_something_serves(tmp_path: Path, server: str, level: str) -> None:
    with answering({"Server": server}) as port:
        assert only(doctor.address(settings(tmp_path, port=port))).level == level


@pytest.mark.parametrize(
    ("host", "keys", "level"),
    [
        ("127.0.0.1", (), "ok"),
        ("0.0.0.0", (), "warn"),
        ("0.0.0.0", ("short",), "warn"),
        ("0.0.0.0", ("x" * 32,), "ok"),
    ],
)
def test_keys(tmp_path: Path, host: str, keys: tuple[str, ...], level: str) -> None:
    found = only(doctor.keys(settings(tmp_path, host=host, api_keys=keys)))
    assert found.level == level
    assert not any(key in found.text + found.remedy for key in keys)


def test_a_model(tmp_path: Path) -> None:
    assert only(doctor.model(settings(tmp_path))).level == "ok"
    assert only(doctor.model(settings(tmp_path, model="someone/something"))).level == "ok"
    assert only(doctor.model(settings(tmp_path, model=str(tmp_path)))).level == "fail", "an empty folder"
    assert only(doctor.model(settings(tmp_path, model="./nowhere"))).level == "fail"


def test_every_tier_is_looked_at_with_the_memory_that_the_others_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_memory_available", lambda: 30 << 20)
    tiers = {"same": Tier(model="builtin"), "other": Tier(model="./nowhere")}
    main, same, other = doctor.model(settings(tmp_path, tiers=tiers))
    assert [finding.check for finding in (main, same, other)] == ["model", "tier same", "tier other"]
    assert (main.level, same.level, other.level) == ("ok", "fail", "fail")


@pytest.mark.parametrize(("available", "level"), [(100, "ok"), (60, "warn"), (40, "fail"), (None, "ok")])
def test_a_model_and_the_memory(available: int | None, level: str) -> None:
    assert doctor._fits("model", "m", 50 << 30, None if available is None else available << 30).level == level


def test_a_router_file(tmp_path: Path) -> None:
    file = write_router(tmp_path / "router.json", "small", "large")
    routes = {"best": Route(targets=("small", "large"), policy="cascade", router=file)}
    found = only(doctor.routers(settings(tmp_path, routes=routes)))
    assert (found.check, found.level, found.text) == ("route best", "ok", f"{file} judges small and large")
    file.write_text("{}")
    assert only(doctor.routers(settings(tmp_path, routes=routes))).level == "fail"


def test_a_cache(tmp_path: Path) -> None:
    assert only(doctor.cache(settings(tmp_path))).level == "ok"
    assert only(doctor.cache(settings(tmp_path, cache=False))).level == "ok"
    (tmp_path / "file").touch()
    in_the_way = settings(tmp_path, cache_path=tmp_path / "file" / "completions")
    assert only(doctor.cache(in_the_way)).level == "fail"
    assert only(doctor.cache(settings(tmp_path, cache_max_bytes=1 << 60))).level == "warn"


def test_keys_that_were_made(tmp_path: Path) -> None:
    given = settings(tmp_path, tenants_path=tmp_path / "tenants", host="0.0.0.0")
    assert only(doctor.keys(given)).level == "warn"
    assert not (tmp_path / "tenants").exists()
    store = TenantStore(tmp_path / "tenants")
    store.directory.put_tenant(Tenant(name="acme"))
    key = store.directory.create_key("acme")
    store.close()
    found = only(doctor.keys(given))
    assert found.level == "ok" and found.text.startswith("1 of ") and key.secret not in found.text
    assert only(doctor.tenants(given)).level == "ok"
    assert only(doctor.tenants(settings(tmp_path, tenants_path=Path("/dev/null/x")))).level == "fail"


def test_a_cache_on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\ntmpfs {tmp_path}ish tmpfs rw 0 0\n"
    monkeypatch.setattr(doctor, "_mounts", lambda: mounts)
    assert only(doctor.cache(settings(tmp_path))).level == "fail"
    assert doctor.filesystem_of(tmp_path / "deep" / "er", mounts) == "nfs4"
    assert doctor.filesystem_of(Path("/"), mounts) == "ext4"
    assert doctor.filesystem_of(Path("/"), "") is None


def test_a_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("penstock.native_build.chip_has", lambda _flags: True)
    assert only(doctor.processor(settings(tmp_path))).level == "warn"


@pytest.mark.parametrize("chip", ["AVX2", "AVX-512 VNNI", None])
def test_the_kind_of_chip(chip: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "penstock.native_build.chip_has", lambda flags: chip is not None and flags == KERNEL_CHIPS[chip]
    )
    monkeypatch.setattr(doctor.shutil, "which", lambda _name: "/usr/bin/cc")
    text = only(doctor.processor(settings(tmp_path))).text
    assert (chip or "without AVX2 nor AVX-512 VNNI") in text


def test_a_temporary_folder_of_too_long_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert only(doctor.temporary_files(settings(tmp_path))).level == "fail"


def test_embeddings(tmp_path: Path) -> None:
    assert only(doctor.embeddings(settings(tmp_path, embedding_model="none"))).level == "ok"
    assert only(doctor.embeddings(settings(tmp_path, embedding_model="./nowhere"))).level == "fail"


def test_a_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor.clock(settings(tmp_path))).level == "ok"
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert only(doctor.clock(settings(tmp_path))).level == "fail"


def test_a_check_that_breaks_is_one_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_settings: Settings) -> Iterator[Finding]:
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor.clock))
    found = list(doctor.examine(settings(tmp_path)))
    assert [finding.level for finding in found] == ["fail", "ok"]


class answering:
    """A server that gives one status to everything, and notes the headers that it was sent."""

    def __init__(self, headers: dict[str, str] | None = None, status: int = 200) -> None:
        seen = self.seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, dict(self.headers)))
                self.send_response_only(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> int:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self.server.server_address[1]

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize(
    ("status", "level"),
    [(200, "ok"), (404, "ok"), (401, "fail"), (403, "fail"), (500, "warn"), (302, "warn")],
)
@pytest.mark.parametrize("format", ["openai", "anthropic"])
def test_an_upstream(tmp_path: Path, status: int, level: str, format: str) -> None:
    elsewhere = answering()
    with elsewhere as other:
        served = answering({"Location": f"http://127.0.0.1:{other}/"}, status)
        with served as port:
            upstream = Upstream(
                base_url=f"http://127.0.0.1:{port}/v1", format=format, api_key=Secret("the-key")
            )
            found = only(doctor.upstreams(settings(tmp_path, upstreams={"one": upstream})))
    assert found.check == "upstream one" and found.level == level
    assert "the-key" not in repr(found) + msgspec.json.encode(found).decode()
    ((path, headers),) = served.seen
    assert path == "/v1/models" and "the-key" in " ".join(headers.values())
    assert not elsewhere.seen, "a key follows no redirect"


def test_an_upstream_that_is_away(tmp_path: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/v1"
        found = only(doctor.upstreams(settings(tmp_path, upstreams={"one": Upstream(base_url=url)})))
    assert found.level == "fail" and "cannot be reached" in found.text
