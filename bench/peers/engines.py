"""The engines that are compared: how each is installed, gets its form of the model, and is started."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from environments import (
    LLAMA_CPP,
    LLAMA_CPP_PYTHON,
    OPENVINO,
    SCRATCH,
    VLLM,
    build_llama_server,
    llama_server,
    run,
)

HERE = Path(__file__).parent
THREADS = 2
# This repository's folders have names that peers' dependencies look for: kernels, models, cache.
APART = {"PYTHONPATH": ""}
MAX_MODEL_LEN, MAX_NUM_SEQS = 2048, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine of the table.

    Attributes:
        prepare: installs it, if it is not yet.
        convert: (folder of the model, shape) gives the path of the engine's own form of it, made if it is not there.
        worker: (path) gives the command of its worker, which speaks as worker.py says.
        server: (path, port) gives the command of its HTTP server; None where its packages bring none.
        environment: variables of both.
    """

    name: str
    title: str
    prepare: Callable[[], None]
    convert: Callable[[Path, str], Path]
    worker: Callable[[Path], list[str]]
    server: Callable[[Path, int], list[str]] | None
    environment: Mapping[str, str] = field(default_factory=dict)


def _worker(python: Path | str, script: str) -> Callable[[Path], list[str]]:
    return lambda model: [str(python), str(HERE / script), str(model), str(THREADS)]


def _made(target: Path, *command: str | Path) -> Path:
    """`target`, after `command` with an unfinished name of it as the last argument has made it."""
    if not target.exists():
        unfinished = target.with_name(f"unfinished-{target.name}")
        run("rm", "-rf", unfinished)
        target.parent.mkdir(parents=True, exist_ok=True)
        run(*command, unfinished)
        unfinished.rename(target)
    return target


def _penstock_server(model: Path, port: int) -> list[str]:
    command = [sys.executable, "-P", "-m", "penstock", "serve", "--model", str(model), "--port", str(port)]
    return [*command, "--quantize", "w8a8", "--speculation", "off"]


PENSTOCK = Engine(
    name="penstock",
    title="Penstock",
    prepare=lambda: None,
    convert=lambda folder, shape: folder,
    worker=_worker(sys.executable, "worker_penstock.py"),
    server=_penstock_server,
)


def _vllm_server(model: Path, port: int) -> list[str]:
    command = [str(VLLM.python), "-P", "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)]


VLLM_CPU = Engine(
    name="vllm",
    title="vLLM",
    prepare=VLLM.prepare,
    convert=lambda folder, shape: _made(
        SCRATCH / "models" / f"{shape}-vllm", sys.executable, HERE / "to_compressed_tensors.py", folder
    ),
    worker=_worker(VLLM.python, "worker_vllm.py"),
    server=_vllm_server,
    environment=APART
    | {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": str(VLLM.folder / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    },
)


def _prepare_llama_cpp() -> None:
    LLAMA_CPP.prepare()
    build_llama_server()


def _llama_server(model: Path, port: int) -> list[str]:
    command = [str(llama_server()), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--threads", str(THREADS), "--threads-batch", str(THREADS), "--cache-ram", "0"]
    return [*command, "--parallel", str(MAX_NUM_SEQS), "--ctx-size", str(MAX_NUM_SEQS * 512)]


LLAMA = Engine(
    name="llama.cpp",
    title="llama.cpp",
    prepare=_prepare_llama_cpp,
    convert=lambda folder, shape: _made(
        SCRATCH / "models" / f"{shape}.gguf", LLAMA_CPP.python, HERE / "to_gguf.py", folder
    ),
    worker=_worker(LLAMA_CPP.python, "worker_llama_cpp.py"),
    server=_llama_server,
    environment=APART
    | {
        "LLAMA_SERVER": str(llama_server()),
        "LLAMA_VERSION": f"of {LLAMA_CPP_PYTHON}",
    },
)

OPENVINO_GENAI = Engine(
    name="openvino",
    title="OpenVINO GenAI",
    prepare=OPENVINO.prepare,
    convert=lambda folder, shape: _made(
        SCRATCH / "models" / f"{shape}-openvino",
        *(
            OPENVINO.python,
            "-P",
            "-m",
            "optimum.commands.optimum_cli",
            "export",
            "openvino",
            "--model",
            folder,
        ),
        *("--task", "text-generation-with-past", "--weight-format", "int8"),
    ),
    worker=_worker(OPENVINO.python, "worker_openvino.py"),
    server=None,
    environment=APART | {"HF_HUB_OFFLINE": "1"},
)

PEERS = {engine.name: engine for engine in (VLLM_CPU, LLAMA, OPENVINO_GENAI)}
