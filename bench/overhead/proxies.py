"""The proxies that are measured: how each is started in front of the mock upstream, and what a request must carry.

Each is set up with as little as lets it serve, which favours it; Penstock alone with what it is measured for: a tenant's key
that is checked, limits and a budget that are kept, an exact cache that is asked, metrics that count.
"""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from environments import LITELLM, SCRATCH, VLLM_ROUTER, Environment, run
from mock_upstream import MODEL

LITELLM_KEY = "sk-bench"
FILES = SCRATCH / "overhead"
TENANTS = FILES / "tenants"
# Far above what is sent, so that each is counted and none refuses.
LIMITS = ("--rpm", "100000000", "--tpm", "100000000000", "--concurrency", "1000", "--budget", "1000000000")

# The folder of this checkout that shows its own packages is no concern of theirs.
APART = {"PYTHONPATH": ""}

PENSTOCK_TOML = """\
model = "none"
embedding_model = "none"
host = "127.0.0.1"
port = {port}
workers = {workers}
tenants_path = "{tenants}"
cache_path = "{cache}"

[upstreams.mock]
base_url = "http://127.0.0.1:{upstream}/v1"
api_key_env = "MOCK_KEY"

[upstreams.mock.models."{model}"]
input = 0.5
output = 1.5
"""
LITELLM_CONFIG = {
    "model_list": [
        {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", "api_key": "upstream"}}
    ],
    "general_settings": {"master_key": LITELLM_KEY},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One column of the table.

    Attributes:
        command: from its own port and the upstream's.
        does: what it does with each request beside passing it on, as the report says it.
        ready: the path that answers 200 once it serves.
        headers: of each request.
        workers: processes that share the port; several may use all cores, one is held to the proxy's.
        environment: None runs in this script's own.
    """

    name: str
    command: Callable[[int, int], list[str]]
    does: str
    ready: str = "/health"
    headers: Callable[[], dict[str, str]] = dict
    variables: dict[str, str] = field(default_factory=dict)
    workers: int = 1
    environment: Environment | None = None

    def version(self) -> str:
        """Of the package that is measured."""
        if self.environment is None:
            return version("aiohttp" if self is FLOOR else "penstock")
        told = f"from importlib.metadata import version; print(version({self.environment.name!r}))"
        return run(self.environment.python, "-c", told)


def floor(port: int, upstream: int) -> list[str]:
    return [
        sys.executable,
        str(Path(__file__).with_name("floor.py")),
        f"http://127.0.0.1:{upstream}",
        str(port),
    ]


def penstock(workers: int) -> Callable[[int, int], list[str]]:
    def command(port: int, upstream: int) -> list[str]:
        name = f"penstock-{port}"
        config = FILES / f"{name}.toml"
        config.write_text(
            PENSTOCK_TOML.format(
                port=port,
                upstream=upstream,
                workers=workers,
                tenants=TENANTS,
                model=MODEL,
                cache=FILES / f"{name}.lmdb",
            )
        )
        return [sys.executable, "-m", "penstock", "serve", "--config", str(config)]

    return command


@functools.cache
def tenant_key() -> str:
    """The key of a tenant with every kind of limit, made by `penstock keys`."""
    made = run(
        *(sys.executable, "-P", "-m", "penstock", "keys", "create", "bench", "--json"),
        *("--tenants-path", TENANTS, *LIMITS),
    )
    key: str = json.loads(made)["key"]
    return key


def counted() -> dict[str, str]:
    return {"Authorization": f"Bearer {tenant_key()}"}


def counted_and_not_kept() -> dict[str, str]:
    return {**counted(), "x-penstock-cache-control": "no-store"}


def litellm(port: int, upstream: int) -> list[str]:
    config = FILES / "litellm.yaml"
    deployed = json.loads(json.dumps(LITELLM_CONFIG))
    deployed["model_list"][0]["litellm_params"]["api_base"] = f"http://127.0.0.1:{upstream}/v1"
    config.write_text(json.dumps(deployed))  # JSON is YAML.
    program = LITELLM.folder / "bin" / "litellm"
    return [
        str(program),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]


def vllm_router(port: int, upstream: int) -> list[str]:
    program = VLLM_ROUTER.folder / "bin" / "vllm-router"
    return [
        *(str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"),
        *("--worker-urls", f"http://127.0.0.1:{upstream}", "--log-level", "error"),
        *("--prometheus-port", str(port + 1)),
    ]


FLOOR = Proxy(name="floor", command=floor, does="nothing: bare aiohttp and uvloop")
PENSTOCK = Proxy(
    name="penstock",
    command=penstock(1),
    does="key, limits on requests, tokens and concurrency, budget, accounts, exact cache asked (a miss, not kept), metrics",
    headers=counted_and_not_kept,
    variables={"MOCK_KEY": "upstream"},
)
PENSTOCK_KEEPING = Proxy(
    name="penstock, keeping",
    command=penstock(1),
    does="the same, and each answer is kept in the cache",
    headers=counted,
    variables=PENSTOCK.variables,
)
PENSTOCK_2 = Proxy(
    name="penstock, 2 workers",
    command=penstock(2),
    does="as penstock, in two processes on all cores",
    headers=PENSTOCK.headers,
    variables=PENSTOCK.variables,
    workers=2,
)
PEERS = {
    "litellm": Proxy(
        name="litellm",
        command=litellm,
        does="key",
        ready="/health/liveliness",
        headers=lambda: {"Authorization": f"Bearer {LITELLM_KEY}"},
        # Its price list comes with the package; otherwise it is fetched.
        variables={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            **APART,
        },
        environment=LITELLM,
    ),
    "vllm-router": Proxy(
        name="vllm-router",
        command=vllm_router,
        does="metrics; in Rust",
        variables=APART,
        environment=VLLM_ROUTER,
    ),
}
