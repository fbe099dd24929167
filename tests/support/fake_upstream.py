"""A service that speaks OpenAI's API as a test tells it to, on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}}


@dataclass
class FakeUpstream:
    """Attributes:
    url: its base_url.
    status: of its replies; 200 answers.
    says: the text of an answer, for a request.
    usage: what its answers say; None for nothing.
    asked, bodies: what came, decoded and as it was.
    hold: what answers wait for.
    """

    url: str = ""
    status: int = 200
    says: Callable[[dict[str, Any]], str] = lambda _body: "hello"
    usage: dict[str, Any] | None = field(default_factory=lambda: dict(USAGE))
    asked: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.hold.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.bodies.append(await request.read())
        await self.hold.wait()
        if self.status != 200:
            return web.json_response({"error": {"message": "no", "type": "server_error"}}, status=self.status)
        head = {"id": "x", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            message = {"role": "assistant", "content": self.says(body)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {} if self.usage is None else {"usage": self.usage}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice], **usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chunk = {**head, "object": "chat.completion.chunk"}
        text = self.says(body)
        begin, rest = text[:3], text[3:]
        for delta, reason in (({"role": "assistant", "content": begin}, None), ({"content": rest}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            await response.write(f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode())
        if self.usage is not None and (body.get("stream_options") or {}).get("include_usage"):
            await response.write(
                f"data: {json.dumps({**chunk, 'choices': [], 'usage': self.usage})}\n\n".encode()
            )
        await response.write(b"data: [DONE]\n\n")
        return response

    async def embed(self, request: web.Request) -> web.Response:
        usage = {"prompt_tokens": 50, "total_tokens": 50}
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}]
        return web.json_response({"object": "list", "data": data, "model": "e", "usage": usage})


@asynccontextmanager
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    upstream = FakeUpstream()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.answer)
    app.router.add_post("/v1/embeddings", upstream.embed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield upstream
    await runner.cleanup()
