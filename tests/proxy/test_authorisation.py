"""What needs a key is decided by the route that was matched, not by what a path looks like."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from running_server import RunningServer, running_server

from penstock.proxy.edge import OPEN_ROUTES
from penstock.proxy.endpoints import ENDPOINTS


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def locked(engine_address: str, model: Path) -> AsyncIterator[RunningServer]:
    async with running_server(engine_address, model, api_keys=("right",)) as server:
        yield server


async def status(server: RunningServer, method: str, path: str, key: str = "") -> int:
    """Raw, since clients tidy paths up."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


OPEN = sorted(OPEN_ROUTES)
CLOSED = sorted({re.sub(r"{.*?}", "tiny", each.path) for each in ENDPOINTS} - OPEN_ROUTES)


def test_every_open_route_exists() -> None:
    assert {each.path for each in ENDPOINTS} >= OPEN_ROUTES
    assert len(CLOSED) >= 7


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_open(locked: RunningServer, method: str, path: str) -> None:
    assert await status(locked, method, path) == 200
    assert await status(locked, method, path + "?a=/v1/models") == 200


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_closed_whatever_the_method(locked: RunningServer, method: str, path: str) -> None:
    assert await status(locked, method, path) == 401
    assert await status(locked, method, path, "wrong") == 401


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/models/tiny/",
        "/./v1/models",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/health%2f..%2fv1%2fmodels",
        "/health;/v1/models",
        "/health%00/v1/models",
        "/health/live/../../v1/models",
        "/v1/models/health",
        "/v1/models/..%2f..%2fhealth",
        "/v1/models/../../health/x",
        "/v1/%6dodels",
        "/V1/MODELS",
        "//metrics",
        "/metrics/",
        "/metrics//",
        "/health/",
        "/health%2flive",
        "/Health",
        "/openapi.json/",
        "/nowhere",
        "/",
        "http://x/v1/models",
        "http://x//health/../v1/models",
    ],
)
async def test_no_spelling_opens_what_is_closed(locked: RunningServer, path: str) -> None:
    """Nobody without a key sees a model, or which paths exist."""
    assert await status(locked, "GET", path) == 401


@pytest.mark.parametrize("path", ["/metrics", "/health", "/openapi.json"])
async def test_open_routes_are_open_for_reading_only(locked: RunningServer, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert await status(locked, method, path) == 401
        assert await status(locked, method, path, "right") == 405


async def test_other_origins_get_no_leave(locked: RunningServer) -> None:
    """No CORS: a page in a browser may not read answers, with or without a key that it should not have anyway."""
    host, port = locked.url.removeprefix("http://").split(":")
    for method in ("GET", "OPTIONS"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"{method} /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: http://evil.example\r\n"
            "Access-Control-Request-Method: POST\r\nAuthorization: Bearer right\r\n\r\n".encode()
        )
        assert b"access-control" not in (await reader.read()).lower()
        writer.close()
