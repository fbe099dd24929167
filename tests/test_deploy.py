"""The examples in deploy/ hold what this version takes. (Images are built and pods are run by nobody here.)"""

import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.config import PREFIX, TABLE, Settings, load_settings
from penstock.proxy.endpoints import ENDPOINTS
from penstock.proxy.reload import RELOADABLE

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PARTS = ("penstock", "proxy", "scheduler", "kernels", "cache", "models", "compress")


def loaded(text: str, folder: Path) -> Settings:
    file = folder / "penstock.toml"
    file.write_text(text)
    return load_settings({"config": str(file)}, {"OPENAI_API_KEY": "key"})


def test_the_settings_and_their_examples(tmp_path: Path) -> None:
    text = (DEPLOY / "penstock.toml").read_text()
    assert loaded(text, tmp_path).cache_path == Path("/var/lib/penstock/completions")
    examples = re.sub(r"^# ?(?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    settings = loaded(examples, tmp_path)
    assert settings.upstreams["openai"].known_models and settings.routes["quick"].targets
    for name in ("api_keys", "upstreams", "routes", "log_level"):
        assert name in RELOADABLE and name in text.split("\n\n")[0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "penstock.service"
    unit.write_text(
        (DEPLOY / "penstock.service").read_text().replace("/opt/penstock/bin/penstock", sys.executable)
    )
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_stop_outlasts_the_drain() -> None:
    drain = tomllib.loads((DEPLOY / "penstock.toml").read_text())["drain_timeout"]
    unit = (DEPLOY / "penstock.service").read_text()
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0]) > drain + 5


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def test_the_pod(tmp_path: Path) -> None:
    config, deployment = manifests()
    settings = loaded(config["data"]["penstock.toml"], tmp_path)
    pod = deployment["spec"]["template"]["spec"]
    (sidecar,) = pod["initContainers"]
    assert settings.drain_timeout + 5 + 5 < pod["terminationGracePeriodSeconds"]
    assert sidecar["args"][2] == "/etc/penstock/penstock.toml"
    mounts = {mount["mountPath"]: mount["name"] for mount in sidecar["volumeMounts"]}
    assert mounts.keys() == {"/etc/penstock", "/var/lib/penstock", "/tmp"}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts.values())
    assert settings.cache_path is not None and settings.cache_path.is_relative_to("/var/lib/penstock")
    paths = {each.path for each in ENDPOINTS}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = sidecar[probe]["httpGet"]
        assert asked["path"] in paths and asked["port"] == sidecar["ports"][0]["name"]
    assert sidecar["ports"][0]["containerPort"] == settings.port
    assert settings.host == "0.0.0.0", "probes come from outside of the pod"
    known = {PREFIX + name.upper() for name in TABLE}
    assert {variable["name"] for variable in sidecar["env"]} <= known


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")


def test_the_image_holds_what_is_installed() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "*" and kept >= set(PARTS)
    assert all((ROOT / name).exists() for name in kept)
    variables = set(re.findall(rf"\b{PREFIX}\w+(?==)", dockerfile()))
    assert variables and variables <= {PREFIX + name.upper() for name in TABLE}
    assert re.search(r"^USER (?!0\b|root\b)", dockerfile(), re.MULTILINE)


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_image_knows_whether_it_lives(status: int | None, healthy: bool) -> None:
    command = re.findall(r'^HEALTHCHECK .* CMD \["python", "-c", "(.*)"\]$', dockerfile(), re.MULTILINE)[0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/live" and status else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        if status is not None:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        else:
            server.socket.close()
        done = subprocess.run([sys.executable, "-c", command.replace("8000", str(port))], capture_output=True)
        if status is not None:
            server.shutdown()
    assert (done.returncode == 0) == healthy, done.stderr
