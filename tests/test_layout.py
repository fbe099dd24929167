"""The one direction of imports, and what an import costs. Reads syntax trees, lazy imports included.

    kernels ← models ← scheduler ← proxy ← tune ← cli     cache ← proxy     kernels, models ← compress ← tune

`penstock.errors`, `penstock.config` and `penstock.native_build` are leaves that all may import, but kernels only the last.
"""

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"errors", "config", "tables", "native_build"}
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors", "tables"},
    "tables": {"errors"},
    "native_build": set(),
    "kernels": {"native_build"},
    "models": {"kernels", *LEAVES},
    "scheduler": {"models", "kernels", *LEAVES},
    "cache": LEAVES,
    "compress": {"models", "kernels", *LEAVES},
    "proxy": {"scheduler", "models", "kernels", "cache", *LEAVES},
    "tune": {"proxy", "models", "cache", "compress", *LEAVES},
    "cli": {"proxy", "scheduler", "models", "kernels", "cache", "compress", "tune", *LEAVES},
}
MAY_NOT_USE = {
    "errors": {"aiohttp", "lmdb", "torch", "transformers", "msgspec"},
    "config": {"aiohttp", "lmdb", "torch", "transformers"},
    "tables": {"aiohttp", "lmdb", "torch", "transformers"},
    "native_build": {"aiohttp", "lmdb", "numpy", "torch", "transformers", "msgspec"},
    "kernels": {"aiohttp", "lmdb", "transformers"},
    "models": {"aiohttp", "lmdb"},
    "scheduler": {"aiohttp", "lmdb"},
    "cache": {"aiohttp", "torch", "transformers"},
    "compress": {"aiohttp", "lmdb"},
    "proxy": {"lmdb", "torch", "transformers"},
    "tune": {"lmdb", "torch", "transformers"},
    "cli": {"lmdb", "torch", "transformers"},
}
# One module each that may, for all of its part.
MAY_USE_ALONE = {"penstock.proxy.tenants.environment": {"lmdb"}}
# What these import is an extra that the tests do without.
NEED_AN_EXTRA = {"penstock.compress.evaluate.harness": "lm_eval"}
PARTS = ("kernels", "models", "scheduler", "cache", "proxy", "compress", "tune")


def modules() -> Iterator[tuple[str, Path]]:
    """Every shipped module by its installed name."""
    for folder in ("penstock", *PARTS):
        for file in sorted((ROOT / folder).rglob("*.py")):
            inside = file.relative_to(ROOT / folder).with_suffix("").parts
            if inside[0] == "recipe":  # makes the built-in model; not shipped
                continue
            name = ("penstock",) if folder == "penstock" else ("penstock", folder)
            yield ".".join(name + tuple(part for part in inside if part != "__init__")), file


MODULES = dict(modules())


def part_of(name: str) -> str:
    """The layer of an installed name: 'penstock.proxy.sse' is proxy; penstock/ but for its leaves is cli."""
    second = name.split(".")[1] if "." in name else ""
    return second if second in MAY_IMPORT else "cli"


def imports(name: str, source: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything `source` imports anywhere."""
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if whole in MODULES else base


def violations(name: str, source: str, *, is_package: bool = False) -> list[str]:
    part, found = part_of(name), []
    for line, target in imports(name, source, is_package=is_package):
        top = target.split(".")[0]
        if top == "penstock":
            # `from .. import __version__` names the package itself, which by itself imports nothing.
            allowed = target == "penstock" or part_of(target) in {part, *MAY_IMPORT[part]}
        else:
            allowed = top not in MAY_NOT_USE[part] - MAY_USE_ALONE.get(name, set())
        if not allowed or (part == "kernels" and target == "penstock"):
            found.append(f"{name}:{line} imports {target}, which {part} may not")
    return found


def test_imports_go_one_way():
    found = []
    for name, file in MODULES.items():
        found += violations(name, file.read_text(encoding="utf-8"), is_package=file.name == "__init__.py")
    assert not found, "\n".join(found)
    assert len(MODULES) > 20


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("penstock.kernels.cpu.int8_matmul", "from ...models import loading"),
        ("penstock.kernels.cpu.int8_matmul", "from ...errors import PenstockError"),
        ("penstock.kernels.cpu.int8_matmul", "from ... import errors"),
        ("penstock.models.loading", "import penstock.scheduler"),
        ("penstock.scheduler.engine", "def lazily():\n    from ..cache import CompletionCache"),
        ("penstock.scheduler.engine", "from .. import cache"),
        ("penstock.scheduler.engine", "from .. import __main__"),
        ("penstock.scheduler.engine", "import aiohttp.web"),
        ("penstock.cache.key", "from ..scheduler.outputs import Chunk"),
        ("penstock.cache.key", "from ..proxy import app"),
        ("penstock.proxy.routes.chat", "from ...compress import tune"),
        ("penstock.proxy.app", "def lazily():\n    import torch"),
        ("penstock.proxy.tenants.counters", "import lmdb"),
        ("penstock.proxy.tenants.environment", "import torch"),
        ("penstock.compress.prune", "from ..scheduler import Engine"),
        ("penstock.errors", "from .config import Settings"),
        ("penstock.config", "from .proxy import app"),
        ("penstock.native_build", "from .errors import PenstockError"),
        ("penstock.cache.semantic.scan", "from ...kernels.cpu.native import library"),
    ],
)
def test_the_wrong_way_is_noticed(name, source, monkeypatch):
    monkeypatch.setitem(MODULES, "penstock.__main__", Path())
    assert len(violations(name, source)) == 1


# One process loads what is heavy, then forks a child for each module: as fresh as its own interpreter for
# everything of ours, without paying seconds for torch each time.
ALONE = """
import importlib, json, os, sys, traceback
import aiohttp, lmdb, torch, transformers
assert not [name for name in sys.modules if name.split(".")[0] == "penstock"]
failed = []
for name in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(json.dumps(failed))
"""


def test_every_module_can_be_imported_alone():
    absent = {name for name, package in NEED_AN_EXTRA.items() if find_spec(package) is None}
    names = [name for name in MODULES if not name.endswith("__main__") and name not in absent]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ALONE, json.dumps(names)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [], done.stderr


def loaded_by(*names: str) -> set[str]:
    """The top-level packages that are loaded after importing `names` in a fresh interpreter."""
    script = f"import {', '.join(names)}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_library_loads_no_server():
    assert not loaded_by("penstock", "penstock.scheduler") & {"aiohttp", "lmdb"}


def test_the_cache_loads_nothing_but_the_cache():
    assert not loaded_by("penstock.cache") & {"aiohttp", "torch", "transformers", "numpy"}


def test_the_proxy_process_loads_no_torch():
    names = [name for name in MODULES if part_of(name) in ("proxy", "cli") and not name.endswith("__main__")]
    assert not loaded_by(*names) & {"torch", "transformers"}


def test_the_embedder_loads_no_transformers():
    """A second of its start, for six layers."""
    assert not loaded_by("penstock.scheduler.embedder_server", "penstock.models.embedding_model") & {
        "transformers"
    }


@pytest.mark.skipif(
    int(version("setuptools").split(".")[0]) < 77,
    reason="building needs setuptools 77, as constraints.txt has it",
)
def test_the_wheel_holds_what_runs_and_nothing_else(tmp_path):
    # From a copy: building leaves a build folder and egg-info behind.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "__init__.py"):
        shutil.copy(ROOT / name, source)
    for folder in ("penstock", *PARTS, "tests", "bench"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    # None may have been measured yet, but those that are must be there.
    (source / "kernels/tuned/Some_GPU.json").write_text("{}")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "-w", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("penstock-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in held} == {"penstock"}
    wanted = {str(Path(*name.split("."))) for name in MODULES}
    python = {name for name in held if name.endswith(".py")}
    assert {str(Path(name).with_suffix("")).removesuffix("/__init__") for name in python} == wanted
    builtin = {f"penstock/{path.relative_to(ROOT)}" for path in (ROOT / "models").glob("builtin*/*.*")}
    tuned = {f"penstock/kernels/tuned/{file.name}" for file in (source / "kernels/tuned").glob("*.json")}
    native = {
        f"penstock/{path.relative_to(ROOT)}"
        for folder in ("kernels/cpu/native", "cache/semantic")
        for path in (ROOT / folder).glob("*.[ch]")
    }
    page = {f"penstock/{path.relative_to(ROOT)}" for path in (ROOT / "proxy/dashboard/page").iterdir()}
    assert held - python == builtin | tuned | native | page
    assert not [name for name in held if "recipe" in name or "tests" in name or "bench" in name]
