"""The body of a request, in bounded time: a client that sends half of one must not hold a place for ever."""

import asyncio
import time

from aiohttp import web

from ..errors import RequestTimeoutError
from .observe.recorder import record_of

BODY_SECONDS = 30.0


async def read_body(request: web.Request) -> bytes:
    """Raises RequestTimeoutError when the body is not whole after BODY_SECONDS."""
    if request.content.is_eof():  # nearly always: it came with the headers
        return await request.read()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            begun = time.perf_counter()
            body = await request.read()
            record_of(request).upload_seconds = time.perf_counter() - begun
            return body
    except TimeoutError:
        raise RequestTimeoutError(
            f"The body was not complete after {BODY_SECONDS:.0f} seconds; send it faster, or less of it."
        ) from None
