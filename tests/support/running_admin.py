"""The admin listener of a running server, on a socket of its own."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from running_server import RunningServer

from penstock.proxy.tenants.admin import AdminServer


@asynccontextmanager
async def running_admin(server: RunningServer, key: str | None) -> AsyncIterator[str]:
    """Its URL. The server must keep tenants."""
    assert server.store is not None
    sock = socket.create_server(("127.0.0.1", 0))
    admin = AdminServer(server.store, sock, key=key, context=server.http.context)
    await admin.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    await admin.close()
