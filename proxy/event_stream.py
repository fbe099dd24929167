"""Server-sent events on their way to the client: at its pace, and never broken off without a word."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import NoReturn

from aiohttp import web

from ..errors import PenstockError
from .edge import begin, caller_of
from .errors import internal_error
from .observe.recorder import INTERNAL, record_of
from .patience import Patience

log = logging.getLogger(__name__)

# A write returns at once unless its reader is behind: what takes longer than this was waiting for the reader.
AT_ONCE_SECONDS = 0.001
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back otherwise
}


async def send_events(
    request: web.Request,
    headers: dict[str, str],
    events: AsyncIterator[bytes],
    *,
    failed: Callable[[PenstockError], bytes],
    write_timeout: float,
) -> web.StreamResponse:
    """Sends what `events` gives; an error of theirs becomes the event that `failed` makes of it, and nothing follows.

    Raises ConnectionError when the client has not read for `write_timeout` seconds.
    """
    response = web.StreamResponse(headers={**_HEADERS, **headers})
    patience, record = Patience(write_timeout), record_of(request)
    try:
        await begin(request, response)
        async for data in events:
            begun = time.perf_counter()
            with patience:
                await response.write(data)
            took = time.perf_counter() - begun
            if took > AT_ONCE_SECONDS:
                record.write_seconds += took
    except TimeoutError:  # the events' own are PenstockErrors
        _cut_off(request, write_timeout)
    except PenstockError as error:
        log.log(error.log_level, "%s broke off: %s", caller_of(request).request_id, error.message)
        record.error = error.code or error.type
        await _write(request, response, failed(error), patience)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        identity = caller_of(request).request_id
        log.exception("%s broke off", identity)
        record.error = INTERNAL
        await _write(request, response, failed(internal_error(identity)), patience)
    finally:
        patience.close()
    return response


async def _write(request: web.Request, response: web.StreamResponse, data: bytes, patience: Patience) -> None:
    try:
        with patience:
            await response.write(data)
    except TimeoutError:
        _cut_off(request, patience.seconds)


def _cut_off(request: web.Request, seconds: float) -> NoReturn:
    log.warning("%s: the client has not read for %g s; closing.", caller_of(request).request_id, seconds)
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("the client stopped reading") from None
