"""What stands between these settings and a server that answers: one check each, none of which changes anything.

A check takes the settings and says what it found. It never says a key, and what it cannot find out is no failure.
"""

import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec

from .config import ENGINE_EMBEDS, NO_MODEL, Settings
from .errors import PenstockError
from .tables import Upstream

Level = Literal["ok", "warn", "fail"]

GIB = 1 << 30
LEAST_FILES = 4096
LEAST_KEY = 16
ASK_SECONDS = 5.0
# LMDB maps its file into memory and locks by shared memory: neither works over a network.
REMOTE = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre", "afs")
_TORCH = (
    "import json, torch; there = torch.cuda.is_available(); "
    "print(json.dumps([torch.__version__, torch.cuda.get_device_name() if there else None]))"
)


class Finding(msgspec.Struct, frozen=True):
    """`remedy`: what to do about it; empty where all is well."""

    check: str
    level: Level
    text: str
    remedy: str = ""


Check = Callable[[Settings], Iterator[Finding]]


def examine(settings: Settings) -> Iterator[Finding]:
    """What every check found, in their order. One that breaks is a failure of its own."""
    for check in CHECKS:
        try:
            yield from check(settings)
        except Exception as error:
            yield Finding(check.__name__, "fail", f"could not be checked: {error}", "report this")


def address(settings: Settings) -> Iterator[Finding]:
    from .proxy.server import listen

    try:
        listen(settings).close()
    except PenstockError as error:
        if settings.port and _is_penstock(settings.host, settings.port):
            yield Finding(
                "address", "ok", f"{settings.host} port {settings.port}: a Penstock serves there already"
            )
        else:
            yield Finding(
                "address", "fail", error.message, "choose another --port, or end what listens there"
            )
    else:
        yield Finding("address", "ok", f"{settings.host} port {settings.port or 'of any number'} is free")


def keys(settings: Settings) -> Iterator[Finding]:
    is_local = settings.host in ("localhost", "::1") or settings.host.startswith("127.")
    made = _made_keys(settings)
    if not settings.api_keys and made:
        yield Finding("keys", "ok", f"{made} of `penstock keys` may be used")
        return
    if not settings.api_keys:
        level: Level = "ok" if is_local else "warn"
        remedy = "" if is_local else "make one with `penstock keys`, set api_keys, or listen on 127.0.0.1"
        yield Finding("keys", level, f"none needed, for whoever reaches {settings.host}", remedy)
        return
    short = sum(len(key) < LEAST_KEY for key in settings.api_keys)
    if short:
        yield Finding(
            "keys",
            "warn",
            f"{short} of {len(settings.api_keys)} have fewer than {LEAST_KEY} letters, and could be guessed",
            "make them with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    else:
        yield Finding("keys", "ok", f"{len(settings.api_keys)} of api_keys may be used")


def _made_keys(settings: Settings) -> int:
    """Live keys in the tenants' folder, which is not made for this."""
    folder = settings.tenants_path
    if not settings.tenants or folder is None or not (folder / "keys" / "data.mdb").is_file():
        return 0
    from .proxy.tenants.tenants import TenantStore

    store = TenantStore(folder)
    try:
        return sum(key.ends is None for key in store.directory.keys(None))
    finally:
        store.close()


def model(settings: Settings) -> Iterator[Finding]:
    from .models.location import find_model

    if settings.model == NO_MODEL:
        yield Finding("model", "ok", "none here; upstreams answer")
        return
    available = _memory_available()
    models = {
        "model": settings.model,
        **{f"tier {name}": tier.model for name, tier in settings.tiers.items()},
    }
    for check, name in models.items():
        try:
            folder = find_model(name)
        except PenstockError as error:
            yield Finding(check, "fail", error.message, "give 'builtin', a folder, or a hub id")
            continue
        if folder is None:
            text = f"{name} is a hub id: what is not in the hub's cache is loaded at the start"
            yield Finding(check, "ok", text)
            continue
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        if not size or not (folder / "config.json").is_file():
            text = f"{folder} has no config.json, or no *.safetensors"
            yield Finding(check, "fail", text, "convert or copy the model")
            continue
        yield _fits(check, name, size, available)
        if available is not None:
            available = max(0, available - size)  # for those that follow


def _fits(check: str, name: str, size: int, available: int | None) -> Finding:
    text = f"{name} has {_gib(size)} of weights"
    if available is None:
        return Finding(check, "ok", text)
    text += f", and {_gib(available)} of memory are free"
    if size > available:
        return Finding(check, "fail", text, "choose a smaller or a quantized model, or more memory")
    if size > 0.7 * available:
        return Finding(check, "warn", text, "little is left for KV and cache; set kv_cache_tokens")
    return Finding(check, "ok", text)


def processor(settings: Settings) -> Iterator[Finding]:
    from .native_build import KERNEL_CHIPS, chip_has

    if settings.model == NO_MODEL:
        return
    chip = next((name for name, flags in KERNEL_CHIPS.items() if chip_has(flags)), None)
    compiler = shutil.which("cc")
    if chip is None:
        missing = " nor ".join(reversed(KERNEL_CHIPS))
        yield Finding(
            "processor", "ok", f"{platform.machine()} without {missing}: torch's operators serve, slower"
        )
    elif compiler:
        yield Finding("processor", "ok", f"{chip}, and a C compiler ({compiler}): kernels in C")
    else:
        yield Finding(
            "processor",
            "warn",
            f"{chip}, but no C compiler: torch's operators serve, several times slower",
            "install gcc or clang as 'cc'; it is needed once, at the first start",
        )


def gpu(settings: Settings) -> Iterator[Finding]:
    if settings.model == NO_MODEL:
        return
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TORCH], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it ends without a word"]
        yield Finding("gpu", "fail", f"torch cannot be loaded: {reason[0]}", "install torch again")
        return
    version, name = json.loads(done.stdout)
    if name is None:
        level: Level = "fail" if settings.device == "cuda" else "ok"
        remedy = (
            "set device = 'cpu', or install a CUDA build of torch and the driver" if level == "fail" else ""
        )
        yield Finding("gpu", level, f"none that torch {version} can use; the CPU serves", remedy)
    elif find_spec("triton") is None:
        yield Finding("gpu", "fail", f"{name}, but no Triton", "pip install 'penstock[gpu]'")
    else:
        yield Finding("gpu", "ok", f"{name}, torch {version}, Triton")


def cache(settings: Settings) -> Iterator[Finding]:
    if not settings.cache:
        yield Finding("cache", "ok", "off")
        return
    folder = settings.cache_path
    assert folder is not None, "load_settings fills it in"
    place = _existing(folder)
    room = shutil.disk_usage(place).free
    yield _amiss("cache", place) or _has_room(folder, room, settings.cache_max_bytes)


def tenants(settings: Settings) -> Iterator[Finding]:
    folder = settings.tenants_path
    if settings.tenants and folder is not None:
        yield _amiss("tenants", _existing(folder)) or Finding("tenants", "ok", f"{folder}: keys and accounts")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def _amiss(check: str, place: Path) -> Finding | None:
    """Why LMDB could not keep anything in `place`."""
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        remedy = f"set {check}_path, or the folder's owner"
        return Finding(check, "fail", f"{place} cannot be written to", remedy)
    kind = filesystem_of(place, _mounts())
    if kind is not None and kind.startswith(REMOTE):
        text = f"{place} lies on {kind}: LMDB loses data over a network"
        return Finding(check, "fail", text, f"set {check}_path to a disk of this machine")
    return None


def _has_room(folder: Path, free: int, limit: int) -> Finding:
    used = sum(file.stat().st_size for file in folder.glob("*.mdb")) if folder.is_dir() else 0
    text = f"{folder}: {_gib(free)} free, and it may grow to {_gib(limit)}"
    if free < limit - used:
        return Finding(
            "cache", "warn", text, "lower cache_max_bytes, or make room: a full disk stops writing"
        )
    return Finding("cache", "ok", text)


def shared_memory(_settings: Settings) -> Iterator[Finding]:
    place = Path("/dev/shm")
    if not place.is_dir() or os.access(place, os.W_OK):
        yield Finding("shared memory", "ok", "locks between processes can be made")
        return
    yield Finding(
        "shared memory",
        "fail",
        "/dev/shm cannot be written to",
        "mount it as tmpfs, or remove the restriction",
    )


def open_files(settings: Settings) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= LEAST_FILES:
        yield Finding(
            "open files", "ok", f"up to {hard}, and so connections" if hard > 0 else "without limit"
        )
        return
    yield Finding(
        "open files",
        "warn",
        f"at most {hard}, and so fewer connections",
        "raise it: ulimit -Hn, LimitNOFILE= in systemd",
    )


def temporary_files(_settings: Settings) -> Iterator[Finding]:
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            path = str(Path(folder) / "engine.sock")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(path)
    except OSError as error:
        yield Finding(
            "temporary files",
            "fail",
            f"no socket can be made in {tempfile.gettempdir()}: {error}",
            "set TMPDIR to a short path that can be written to",
        )
    else:
        yield Finding("temporary files", "ok", f"{tempfile.gettempdir()} takes the engine's socket")


def embeddings(settings: Settings) -> Iterator[Finding]:
    from .models.embedding_location import AUTO, choose_embedding_model, embedding_model_name

    try:
        chosen = choose_embedding_model(settings.embedding_model)
    except PenstockError as error:
        yield Finding("embeddings", "fail", error.message, "set embedding_model")
        return
    if chosen is not None:
        yield Finding("embeddings", "ok", f"by {embedding_model_name(chosen)}")
    elif settings.embedding_model == ENGINE_EMBEDS:
        yield Finding("embeddings", "ok", "by the served model itself, for the cache alone")
    elif settings.embedding_model == AUTO:
        yield Finding(
            "embeddings",
            "warn",
            "no model: the cache finds exact repeats only",
            "pip install 'penstock[semantic]', or set embedding_model to a folder, or to 'none'",
        )
    else:
        yield Finding("embeddings", "ok", "off")


def clock(_settings: Settings) -> Iterator[Finding]:
    """Entries of the cache and windows of budgets are dated."""
    installed = Path(__file__).stat().st_mtime
    if time.time() < installed:
        yield Finding(
            "clock", "fail", "the time is before this package was installed", "set it; use NTP or chrony"
        )
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def routers(settings: Settings) -> Iterator[Finding]:
    """The files that `penstock tune router` made; whether their tiers are there is known once they are loaded."""
    from .proxy.routing.learned import Judge

    for name, route in settings.routes.items():
        if route.router is None:
            continue
        check = f"route {name}"
        try:
            judge = Judge.load(route.router)
        except PenstockError as error:
            yield Finding(
                check, "fail", error.message, "run penstock tune router, or set router to what it wrote"
            )
        else:
            yield Finding(check, "ok", f"{route.router} judges {judge.small} and {judge.large}")


def upstreams(settings: Settings) -> Iterator[Finding]:
    """Asks each for its models: the cheapest question that needs the key."""
    for name, upstream in settings.upstreams.items():
        check = f"upstream {name}"
        if upstream.sends_key_in_clear:
            yield Finding(check, "warn", "its key travels unencrypted", "use https in base_url")
        yield _reached(check, upstream)


def _reached(check: str, upstream: Upstream) -> Finding:
    secret = upstream.api_key.value if upstream.api_key else None
    headers = {"User-Agent": "penstock"}
    if secret and upstream.format == "anthropic":
        headers |= {"x-api-key": secret, "anthropic-version": "2023-06-01"}
    elif secret:
        headers["Authorization"] = f"Bearer {secret}"
    request = urllib.request.Request(f"{upstream.base_url.rstrip('/')}/models", headers=headers)
    started = time.perf_counter()
    try:
        status = _open(request)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding(
            check, "fail", f"{upstream.base_url} cannot be reached: {reason}", "check base_url and network"
        )
    spent = f"{1000 * (time.perf_counter() - started):.0f} ms"
    if status in (401, 403):
        return Finding(
            check, "fail", f"it refuses the key ({status})", "set the key that api_key_env or _file names"
        )
    if status >= 500 or 300 <= status < 400:
        return Finding(
            check, "warn", f"it answers {status} to /models", "look at its own status, and at base_url"
        )
    # Some have no such endpoint: that they answered is what was asked.
    return Finding(check, "ok", f"answers in {spent}" + (f" ({status})" if status != 200 else ""))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes to the address that was configured, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _open(request: urllib.request.Request) -> int:
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=ASK_SECONDS) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def _is_penstock(host: str, port: int) -> bool:
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    local = f"[{local}]" if ":" in local else local
    try:
        with urllib.request.urlopen(f"http://{local}:{port}/health/live", timeout=ASK_SECONDS) as reply:
            return bool(reply.headers.get("Server") == "penstock")
    except OSError:
        return False


def filesystem_of(place: Path, mounts: str) -> str | None:
    """The kind of file system that holds `place`, by the lines of /proc/mounts; None where they do not tell."""
    path = str(place.resolve())
    found: tuple[int, str] | None = None
    for line in mounts.splitlines():
        _, point, kind, *_ = line.split()
        inside = point == "/" or path == point or path.startswith(point + "/")
        if inside and (found is None or len(point) >= found[0]):
            found = len(point), kind
    return None if found is None else found[1]


def _mounts() -> str:
    try:
        return Path("/proc/mounts").read_text()
    except OSError:
        return ""


def _memory_available() -> int | None:
    """Of the machine, or what the container is allowed, whichever is less."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int((group / "memory.current").read_text()))
    except OSError:
        pass
    return min(found, default=None)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


CHECKS: tuple[Check, ...] = (
    address,
    keys,
    model,
    processor,
    gpu,
    cache,
    tenants,
    shared_memory,
    open_files,
    temporary_files,
    embeddings,
    clock,
    routers,
    upstreams,
)
