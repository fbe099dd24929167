"""The least that a proxy of aiohttp and uvloop can do, which is the floor that others are measured against: UPSTREAM PORT.

Bodies go through unread, pieces of a stream as they come. No key is checked, nothing is looked up, counted or logged.
"""

import sys

import aiohttp
import uvloop
from aiohttp import web


class Floor:
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream

    async def session(self, _app: web.Application):
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        ) as session:
            self._session = session
            yield

    async def relay(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"Content-Type": request.content_type, "Authorization": "Bearer upstream"}
        async with self._session.post(
            self._upstream + request.path, data=body, headers=headers, allow_redirects=False
        ) as answer:
            if answer.content_type != "text/event-stream":
                return web.Response(
                    body=await answer.read(), status=answer.status, content_type=answer.content_type
                )
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
            )
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


async def ready(_request: web.Request) -> web.Response:
    return web.Response()


async def main(upstream: str, port: int) -> None:
    floor, app = Floor(upstream), web.Application()
    app.cleanup_ctx.append(floor.session)
    app.add_routes([web.get("/health", ready), web.post("/v1/chat/completions", floor.relay)])
    await web._run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
