"""The body of a request, in bounded time and bounded size, as sent and as unpacked.

aiohttp could unpack by itself, but would go on unpacking what it throws away after a refusal: ten seconds of our time for
a few megabytes of somebody's zeros. So it hands bodies over as they came (`runner.py`), and they are unpacked here.
"""

import asyncio
import time
import zlib

from aiohttp import web

from ..errors import InvalidRequestError, RequestTimeoutError, UnsupportedEncodingError
from .observe.recorder import RECORD

BODY_SECONDS = 30.0
ENCODINGS = ("gzip", "deflate")
_READ = ("identity", *ENCODINGS)
# Of zlib's: expect a gzip header; expect none, for "deflate" as some send it.
_GZIP, _BARE = 16 + zlib.MAX_WBITS, -zlib.MAX_WBITS


async def read_body(request: web.Request) -> bytes:
    """The whole body, unpacked.

    Raises RequestTimeoutError when it is not whole after BODY_SECONDS, HTTPRequestEntityTooLarge beyond the
    application's `client_max_size`, UnsupportedEncodingError and InvalidRequestError for what cannot be unpacked.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in _READ:
        raise UnsupportedEncodingError(
            f"The body's Content-Encoding is {encoding!r}; this server reads {', '.join(ENCODINGS)}, or none."
        )
    limit = request.client_max_size
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
    data = await _whole(request)
    return data if encoding == "identity" else _unpacked(data, encoding, limit)


async def _whole(request: web.Request) -> bytes:
    if request.content.is_eof():  # nearly always: it came with the headers
        body = request.content.read_nowait()
        if len(body) > request.client_max_size:  # in chunks, none of which said so
            raise web.HTTPRequestEntityTooLarge(request.client_max_size, len(body))
        return body
    try:
        async with asyncio.timeout(BODY_SECONDS):
            begun = time.perf_counter()
            body = await request.read()
            if (record := request.get(RECORD)) is not None:  # the admin listener keeps none
                record.upload_seconds = time.perf_counter() - begun
            return body
    except TimeoutError:
        raise RequestTimeoutError(
            f"The body was not complete after {BODY_SECONDS:.0f} seconds; send it faster, or less of it."
        ) from None


def _unpacked(data: bytes, encoding: str, limit: int) -> bytes:
    # A zlib header's two bytes, read as one number, are a multiple of 31 (RFC 1950).
    bare = encoding == "deflate" and int.from_bytes(data[:2], "big") % 31 != 0
    unpacker = zlib.decompressobj(_GZIP if encoding == "gzip" else _BARE if bare else zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise InvalidRequestError(f"The body is not {encoding}, as its Content-Encoding says.") from error
    if len(unpacked) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, len(unpacked))
    if not unpacker.eof:
        raise InvalidRequestError(f"The body ends in the middle of its {encoding} data; send it whole.")
    if unpacker.unused_data:
        raise InvalidRequestError(f"The body goes on after the end of its {encoding} data; send one piece.")
    return unpacked
