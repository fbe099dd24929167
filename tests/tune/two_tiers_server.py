"""A service of two models of known quality that speaks OpenAI's API, on a real socket in a thread of its own."""

import asyncio
import math
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

USAGE_TOKENS = 8
RIGHT, WRONG = "`ls`", "`rm`"


@dataclass
class TwoTiers:
    """`small` and `large`: of the hard questions, which say so, the small one gets half wrong, and is then less sure.

    Attributes:
        telling: whether it is less sure.
        logprobs: whether it gives any.
        fails: statuses of its next replies.
    stops_after: so many requests it answers, and then none.
        refuses: words of questions that it refuses.
        asked: how often each model was asked.
        bodies: what was asked.
    """

    url: str = ""
    telling: bool = True
    logprobs: bool = True
    fails: list[int] = field(default_factory=list)
    stops_after: float = math.inf
    refuses: str = "never"
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.asked[body["model"]] += 1
        if self.asked.total() > self.stops_after:
            return web.json_response({"error": {"message": "key withdrawn"}}, status=401)
        if self.fails:
            headers = {"Retry-After": "0"}
            return web.json_response(
                {"error": {"message": "busy"}}, status=self.fails.pop(0), headers=headers
            )
        if body["model"] not in ("small", "large"):
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if self.refuses in text:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        rng = random.Random(text)
        right = body["model"] == "large" or "hard" not in text or rng.random() < 0.5
        unsure = self.telling and not right
        # Sure answers are sometimes wrong, too.
        chosen = [-abs(rng.gauss(1.5 if unsure else 0.2, 0.4)) - 0.001 for _ in range(USAGE_TOKENS)]
        return web.json_response(self._reply(body, RIGHT if right else WRONG, chosen))

    async def embed(self, request: web.Request) -> web.Response:
        """Of a text: how often it says that it is hard, and nothing."""
        body = await request.json()
        self.asked[body["model"]] += len(body["input"])
        data = [{"embedding": [float(text.count("hard")), 0.0, 1.0]} for text in body["input"]]
        return web.json_response({"data": data, "model": body["model"]})

    def _reply(self, body: dict[str, Any], text: str, chosen: list[float]) -> dict[str, Any]:
        usage = {"prompt_tokens": 12, "completion_tokens": USAGE_TOKENS}
        second = [math.log(max(1e-6, 1 - math.exp(value))) for value in chosen]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
            if body.get("logprobs") and self.logprobs:
                tops = [[{"logprob": a}, {"logprob": b}] for a, b in zip(chosen, second, strict=True)]
                choice["logprobs"] = {
                    "content": [
                        {"token": "x", "logprob": a, "top_logprobs": top}
                        for a, top in zip(chosen, tops, strict=True)
                    ]
                }
        else:
            choice["text"] = text
            if body.get("logprobs") and self.logprobs:
                tops = [{"x": a, "y": b} for a, b in zip(chosen, second, strict=True)]
                choice["logprobs"] = {"token_logprobs": chosen, "top_logprobs": tops}
        return {"model": body["model"], "choices": [choice], "usage": usage}


@contextmanager
def two_tiers() -> Iterator[TwoTiers]:
    tiers, started, loop = TwoTiers(), threading.Event(), asyncio.new_event_loop()
    runner: web.AppRunner | None = None

    async def start() -> None:
        nonlocal runner
        app = web.Application()
        app.router.add_post("/v1/chat/completions", tiers.answer)
        app.router.add_post("/v1/completions", tiers.answer)
        app.router.add_post("/v1/embeddings", tiers.embed)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        tiers.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield tiers
    finally:
        assert runner is not None
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
