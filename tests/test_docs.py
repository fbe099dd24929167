"""The examples of the documentation run as they stand."""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock_command import PENSTOCK, start

DOCS = Path(__file__).parent.parent / "docs"


def examples(kind: str) -> list[object]:
    """Blocks that begin with ```KIND."""
    found = re.compile(rf"```{kind}\n(.*?)```", re.DOTALL)
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in sorted(DOCS.glob("*.md"))
        for number, block in enumerate(found.findall(page.read_text()), 1)
    ]


EXAMPLES = examples("python run")
SERVED = examples("python served")
COMMANDS = examples("sh run")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server of the built-in model, under any name."""
    cache = tmp_path_factory.mktemp("served") / "cache"
    process, url = start("--cache-path", str(cache), "--model-aliases", "*=builtin")
    yield url
    process.send_signal(signal.SIGTERM)
    process.wait(30)


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str, tmp_path: Path):
    example = tmp_path / "example.py"
    example.write_text(code)
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize("code", COMMANDS)
def test_commands_run(code: str, tmp_path: Path):
    """With `penstock` on the path being this one."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "penstock"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(PENSTOCK)} "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize("code", SERVED)
def test_an_example_runs_against_a_server(
    code: str,
    tmp_path: Path,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "unused")
    example = tmp_path / "example.py"
    example.write_text(code)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip(), "an example shows something"


def test_there_are_examples():
    assert len(EXAMPLES) >= 4 and len(SERVED) >= 3 and COMMANDS


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("penstock", ["torch", "aiohttp", "lmdb"]),
        ("penstock.scheduler", ["torch", "aiohttp", "lmdb", "transformers"]),
    ],
)
def test_importing_loads_no_more_than_is_said(package: str, absent: list[str]):
    code = f"import sys, {package}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_embedding_an_engine_loads_neither_http_nor_the_cache():
    code = "import sys; from penstock.scheduler import Engine; print([n for n in ('aiohttp', 'lmdb') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
