"""Managing tenants over HTTP: on a real socket, on the production runner."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from penstock.config import Settings
from penstock.errors import AuthenticationError, ConfigError
from penstock.proxy.tenants.admin import AdminServer
from penstock.proxy.tenants.spend import Spend


class Admin:
    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            aiohttp.ClientSession(headers=named) as session,
            session.request(method, self.url + path, json=body) as reply,
        ):
            return reply.status, await reply.json()


@pytest_asyncio.fixture(params=[None], loop_scope="session")
async def admin(place, request: pytest.FixtureRequest) -> AsyncIterator[Admin]:
    sock = socket.create_server(("127.0.0.1", 0))
    server = AdminServer(place.store, sock, key=request.param)
    await server.start()
    yield Admin(f"http://127.0.0.1:{sock.getsockname()[1]}")
    await server.close()


def with_key(test: Any) -> Any:
    return pytest.mark.parametrize("admin", ["a key"], indirect=True)(test)


async def test_a_tenant_from_its_making_to_its_end(admin: Admin, place) -> None:
    limits = {"rpm": 60, "budget": 2.5, "window": "day"}
    status, made = await admin.ask("PUT", "/tenants/acme", {"limits": limits, "models": ["m"]})
    assert (status, made["limits"]["rpm"], made["models"], made["weight"]) == (201, 60, ["m"], 1.0)
    status, key = await admin.ask("POST", "/tenants/acme/keys", {"label": "ci"})
    assert status == 201 and key["key"].startswith(f"psk-{key['id']}-") and key["label"] == "ci"
    tenant = place.tenants.authenticate({"x-api-key": key["key"]})
    with place.tenants.admit(tenant, model="m", tokens=5, cost=1.0) as admission:
        _, shown = await admin.ask("GET", "/tenants/acme")
        assert shown["now"] == {
            "running": 1,
            "requests_left": 59,
            "spent": 0.0,
            "reserved": 1.0,
            "window_ends": "2026-11-26T00:00:00Z",
        }
        assert [listed["id"] for listed in shown["keys"]] == [key["id"]]
        assert key["key"] not in str(shown)
        admission.call("m").settle(Spend(model="m", prompt_tokens=3, completion_tokens=4, cost=0.5))
    _, listed = await admin.ask("GET", "/tenants")
    assert [(one["name"], one["now"]["spent"]) for one in listed["tenants"]] == [("acme", 0.5)]
    _, usage = await admin.ask("GET", "/usage?tenant=acme&days=1")
    (row,) = usage["usage"]
    assert (row["day"], row["model"], row["prompt_tokens"], row["cost"]) == ("2026-11-25", "m", 3, 0.5)
    assert (await admin.ask("GET", "/usage?tenant=other"))[1]["usage"] == []

    status, changed = await admin.ask("PUT", "/tenants/acme", {"weight": 2})
    assert (status, changed["limits"]["rpm"], changed["weight"]) == (200, None, 2.0)
    status, ended = await admin.ask("DELETE", f"/keys/{key['id']}")
    assert status == 200 and ended["ends"] == "2026-11-25T12:00:00Z"
    with pytest.raises(AuthenticationError, match="has ended"):
        place.tenants.authenticate({"x-api-key": key["key"]})
    await admin.ask("POST", "/tenants/acme/keys")
    assert await admin.ask("DELETE", "/tenants/acme") == (200, {"name": "acme", "keys_revoked": 1})
    assert (await admin.ask("GET", "/tenants/acme"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("PUT", "/tenants/acme", {"limits": {"rpm": 0}}, 400, "rpm is 0; it must be at least 1"),
        ("PUT", "/tenants/acme", {"limits": {"rps": 1}}, 400, "rps"),
        ("PUT", "/tenants/acme", {"limit": {}}, 400, "limit"),
        ("PUT", "/tenants/acme", {"name": "bolt"}, 400, "the path says 'acme'"),
        ("PUT", "/tenants/default", {}, 400, "stands for who comes without a key"),
        ("PUT", "/tenants/acme", [], 400, "object"),
        ("POST", "/tenants/nobody/keys", None, 404, "There is no tenant 'nobody'"),
        ("DELETE", "/keys/nothing", None, 404, "There is no key 'nothing'"),
        ("GET", "/usage?days=0", None, 400, "days is '0'"),
        ("GET", "/usage?day=1", None, 400, "Unknown query parameter 'day'"),
        ("GET", "/v1/models", None, 404, "nothing at GET /v1/models"),
        ("POST", "/usage", None, 405, "does not take POST"),
    ],
)
async def test_mistakes_are_errors_as_openai_has_them(
    admin: Admin, method: str, path: str, body: Any, status: int, says: str
) -> None:
    got, content = await admin.ask(method, path, body)
    assert got == status and says in content["error"]["message"]
    assert set(content["error"]) == {"message", "type", "param", "code"}


async def test_pages_in_a_browser_and_other_hosts_are_turned_away(admin: Admin) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Host": "127.0.0.1.evil"}):
        status, content = await admin.ask("GET", "/tenants", **headers)
        assert status == 401, content
    assert (await admin.ask("GET", "/tenants", Host="localhost:1"))[0] == 200


@with_key
async def test_a_key_is_wanted_where_one_is_set(admin: Admin) -> None:
    assert (await admin.ask("GET", "/tenants"))[0] == 401
    assert (await admin.ask("GET", "/tenants", Authorization="Bearer a  key"))[0] == 401
    assert (await admin.ask("GET", "/tenants", Authorization="Bearer a key", Host="else"))[0] == 200
    assert (await admin.ask("DELETE", "/tenants/x", Authorization="Bearer a key"))[0] == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_others_can_only_reach_it_with_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match=r"admin_host is .* set admin_key"):
        Settings(admin_host=host, admin_port=9000)
    Settings(admin_host=host, admin_port=9000, admin_key="secret")
    Settings(admin_host=host)


def test_it_needs_tenants() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        Settings(admin_host=host, admin_port=9000)
    with pytest.raises(ConfigError, match="tenants is off"):
        Settings(admin_port=9000, tenants=False)
    with pytest.raises(ConfigError, match="admin_key is empty"):
        Settings(admin_key="")


async def test_a_body_may_come_after_its_headers(admin: Admin) -> None:
    host, port = admin.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"PUT /tenants/late HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n".encode()
    )
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.write(b"{}")
    assert b" 201 " in await reader.readline()
    writer.close()
