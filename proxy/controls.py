"""What headers say of one request: its id, and how the cache may be used; and the name of a static key's tenant.

One value per request.
"""

import math
import random
import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from ..cache.near import MODES, Mode
from ..config import did_you_mean
from ..errors import InvalidRequestError

CACHE_CONTROL = "x-penstock-cache-control"
NAMESPACE = "x-penstock-namespace"
REQUEST_ID = "x-request-id"
DEFAULT_TENANT = "default"

# Keys of the body field `penstock`.
EXTENSIONS = ("cache", "deadline", "drafters", "priority", "sparse_attention", "ttft_deadline")
_SANE_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_DIRECTIVES = ["no-cache", "no-store", "sampled", "ttl", "namespace", "mode"]


class CacheControls(msgspec.Struct, frozen=True):
    """What one request lets the cache do.

    Attributes:
        read: answer from the cache (off with `no-cache`).
        write: keep the answer (off with `no-store`).
        sampled: also when neither greedy nor seeded, so that an answer stands for a whole distribution.
        ttl: seconds the kept answer stays valid; None takes the server's.
        namespace: entries of other namespaces are not seen.
        mode: what is made of questions that mean the same, at most; None for what the server allows.
    """

    read: bool = True
    write: bool = True
    sampled: bool = False
    ttl: float | None = None
    namespace: str = ""
    mode: Mode | None = None


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's own id where it is sane (it goes into logs and headers), else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _SANE_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    # Unique, not secret: a uuid4 asks the kernel, which costs 3 µs more.
    return f"{random.getrandbits(128):032x}"


def tenant_of(api_key: str) -> str:
    """The tenant that a key's requests belong to; what came without one belongs to "default"."""
    # Bytes that are no UTF-8 arrive as lone surrogates.
    raw = api_key.encode("utf-8", "surrogateescape")
    return blake2b(raw, digest_size=16).hexdigest() if api_key else DEFAULT_TENANT


def cache_controls(headers: Mapping[str, str], body: dict[str, Any] | None) -> CacheControls:
    """Directives of the headers, then of the body's `penstock: {"cache": {...}}`, which wins.

    Raises InvalidRequestError for an unknown directive or a bad value.
    """
    control, namespace = headers.get(CACHE_CONTROL, ""), headers.get(NAMESPACE)
    if body:
        return _controls({**_directives(control, namespace), **_of_body(body)})
    return _of_headers(control, namespace)


@lru_cache(maxsize=1024)
def _of_headers(control: str, namespace: str | None) -> CacheControls:
    """An app says the same with each of its requests."""
    return _controls(_directives(control, namespace))


def _directives(control: str, namespace: str | None) -> dict[str, object]:
    directives: dict[str, object] = {}
    for part in filter(None, (part.strip() for part in control.split(","))):
        name, equals, value = part.partition("=")
        directives[name.strip().lower()] = value.strip() if equals else True
    if namespace is not None:
        directives["namespace"] = namespace
    return directives


def _controls(directives: dict[str, object]) -> CacheControls:
    for name in directives:
        if name not in _DIRECTIVES:
            raise InvalidRequestError(
                f"Unknown cache directive {name!r}; {did_you_mean(name, _DIRECTIVES)}", param=CACHE_CONTROL
            )
    return CacheControls(
        read=not _switch(directives, "no-cache"),
        write=not _switch(directives, "no-store"),
        sampled=_switch(directives, "sampled"),
        ttl=_seconds(directives.get("ttl")),
        namespace=_name(directives.get("namespace", "")),
        mode=_mode(directives.get("mode")),
    )


def _of_body(extension: dict[str, Any]) -> dict[str, object]:
    for name in extension:
        if name not in EXTENSIONS:
            raise InvalidRequestError(
                f"Unknown parameter 'penstock.{name}'; known are: {', '.join(EXTENSIONS)}.",
                param=f"penstock.{name}",
            )
    cache = extension.get("cache", {})
    if not isinstance(cache, dict):
        raise InvalidRequestError("penstock.cache must be an object of directives.", param="penstock.cache")
    return {name.replace("_", "-"): value for name, value in cache.items()}


def _switch(directives: Mapping[str, object], name: str) -> bool:
    value = directives.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequestError(
            f"The cache directive {name} takes no value, but got {value!r}.", param=CACHE_CONTROL
        )
    return value


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # the except is the check
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequestError(
            f"The cache directive ttl is {value!r}; it must be a number of seconds above 0.",
            param=CACHE_CONTROL,
        )
    return seconds


def _mode(value: object) -> Mode | None:
    if value is not None and value not in MODES:
        raise InvalidRequestError(
            f"The cache directive mode is {value!r}; it must be one of {', '.join(MODES)}.",
            param=CACHE_CONTROL,
        )
    return value


def _name(value: object) -> str:
    # Printable, so also no lone surrogate, which is how bytes that are no UTF-8 arrive.
    if not isinstance(value, str) or len(value) > 256 or not value.isprintable():
        raise InvalidRequestError(
            f"{NAMESPACE} must be a printable text of at most 256 characters.", param=NAMESPACE
        )
    return value
