"""`--embedding-model engine` on the command line: what is said at start, what is refused there, and `cache explain`."""

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest
from penstock_command import PENSTOCK, start
from tiny_model import write_tiny_model

from penstock import doctor
from penstock.cache.opened import opened_cache
from penstock.cli import main
from penstock.cli_serve import embeddings_line
from penstock.config import Settings

ENGINE = ("--embedding-model", "engine")
QUESTION, OTHERWISE = "how do I extract a tar.gz archive?", "how can I extract a tar.gz archive?"


def ask(url: str, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    body = {"model": "builtin", "messages": messages, "temperature": 0, "max_tokens": 200}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    urllib.request.urlopen(request, timeout=60).read()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_states_too_short_are_refused_at_start(tmp_path: Path, workers: str) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    arguments = [
        "--model",
        str(model),
        "--cache-path",
        str(tmp_path / "cache"),
        "--workers",
        workers,
        *ENGINE,
    ]
    done = subprocess.run(
        [*PENSTOCK, "serve", "--port", "0", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and not done.stdout
    assert (
        "the hidden states of tiny have 64 numbers, and the cache compares vectors of at least 256"
        in done.stderr
    )


def test_upstreams_alone_are_refused_at_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "penstock.toml"
    table = '[upstreams.up]\nbase_url = "http://127.0.0.1:9/v1"\nmodels = ["m"]\n'
    file.write_text(f"model = 'none'\nembedding_model = 'engine'\nport = 0\n{table}")
    assert main(["serve", "--config", str(file)]) == 1
    assert "embedding_model is 'engine', but model is 'none'" in capsys.readouterr().err


def test_what_is_said_of_it(tmp_path: Path) -> None:
    settings = Settings(embedding_model="engine", cache_path=tmp_path)
    assert embeddings_line(settings).startswith("Embeddings by the served model itself, for the cache alone")
    (finding,) = doctor.embeddings(settings)
    assert (finding.level, finding.text) == ("ok", "by the served model itself, for the cache alone")


def test_explain_embeds_as_the_server_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    process, url = start("--cache-path", str(cache), *ENGINE)
    try:
        for number in range(200):  # until the first questions were embedded
            ask(url, f"{QUESTION} {number}")
            with opened_cache(cache, max_bytes=1 << 30) as opened:
                if opened.index is not None:
                    break
        ask(url, QUESTION)
    finally:
        process.terminate()
        assert process.wait(20) == 0
    where = ["--cache-path", str(cache), "--json"]
    assert main(["cache", "explain", OTHERWISE, *where, *ENGINE]) == 0
    (explained,) = json.loads(capsys.readouterr().out)
    nearest = explained["neighbours"][0]
    assert (nearest["question"], nearest["rung"]) == (QUESTION, "draft") and nearest["similarity"] > 0.8
    small = write_tiny_model(tmp_path / "tiny")
    assert main(["cache", "explain", OTHERWISE, *where, *ENGINE, "--model", str(small)]) == 1
    assert "have 64 numbers" in capsys.readouterr().err
