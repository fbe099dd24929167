"""`penstock serve` with a model beside the main one, as processes."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
from penstock_command import PENSTOCK
from tiny_model import write_tiny_model


def answered(url: str, model: str) -> str:
    """Who answers."""
    body = {"model": model, "prompt": "abc", "max_tokens": 2, "temperature": 0}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as reply:
        name: str = json.loads(reply.read())["model"]
        return name


def engines(process: subprocess.Popen[str]) -> list[int]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # one that ends just now
            if any("engine_server" in word for word in child.cmdline()):
                found.append(child.pid)
    return found


def test_workers_share_the_engines_of_all_models(tmp_path: Path) -> None:
    main, small = (
        write_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(("main", "small"))
    )
    file = tmp_path / "penstock.toml"
    file.write_text(
        f'model = "{main}"\nembedding_model = "none"\nport = 0\nworkers = 2\ncache = false\nthreads = 1\n'
        f'[tiers.little]\nmodel = "{small}"\nthreads = 1\n'
    )
    process = subprocess.Popen(
        [*PENSTOCK, "serve", "--config", str(file)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[-1].strip()
        assert process.stdout.readline().startswith("Beside it: little (LlamaForCausalLM, ")
        # Each new connection reaches one of the workers by chance.
        assert [answered(url, name) for name in ("little", "main") * 4] == ["little", "main"] * 4
        before = engines(process)
        assert len(before) == 2, "one engine for each model, however many workers"
        os.kill(before[1], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while set(engines(process)) & {before[1]} or len(engines(process)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [answered(url, name) for name in ("little", "main") * 2] == ["little", "main"] * 2
    finally:
        process.terminate()
        assert process.wait(20) == 0
