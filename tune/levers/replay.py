"""A workload sent to a server as an app would send it: streamed, greedy, so many requests at a time, in order."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from ...errors import TuneError
from .catalogue import ASKED

_DATA = b"data: "
_DONE = b"[DONE]"
# Until what is loaded behind the model, the cache's embedder, has come too.
_WARM_SECONDS = 20.0
_TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=10)


class Request(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def body(self) -> Mapping[str, Any]:
        """Without what is the same for all; what it names all the same, counts."""


@dataclass(slots=True)
class Replay:
    """Lists are in the order of the requests.

    Attributes:
        seconds: from the first request to the last answer.
        first_token, last_token: seconds from each request to these of its answer.
        outcomes: what the cache did; models: who answered.
    """

    texts: list[str]
    first_token: list[float]
    last_token: list[float]
    outcomes: list[str]
    models: list[str]
    seconds: float = 0.0


async def replay(
    url: str, requests: Sequence[Request], *, concurrency: int, max_tokens: int, model: str = ASKED
) -> Replay:
    """Raises TuneError where the server cannot be reached, is silent, or refuses a request."""
    try:
        return await _replay(url, requests, concurrency, max_tokens, model)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TuneError(f"The server cannot be reached, or is silent: {error!r}.") from error


async def _replay(
    url: str, requests: Sequence[Request], concurrency: int, max_tokens: int, model: str
) -> Replay:
    count = len(requests)
    found = Replay([""] * count, [0.0] * count, [0.0] * count, [""] * count, [""] * count)
    left = iter(enumerate(requests))
    usual = {"model": model, "temperature": 0, "max_tokens": max_tokens, "stream": True}
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=connector) as session:
        await _warm(session, url, requests[0], usual)

        async def work() -> None:
            for place, request in left:
                await _ask(session, url, request, usual, found, place)

        start = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, count)):
                    group.create_task(work())
        except BaseExceptionGroup as errors:  # the first has ended the others
            raise errors.exceptions[0] from None
        found.seconds = time.perf_counter() - start
    return found


async def _warm(session: aiohttp.ClientSession, url: str, request: Request, usual: dict[str, object]) -> None:
    """The first answer of all takes longer than those to come, and a cache finds by meaning when its embedder is there."""
    headers = {"x-penstock-cache-control": "no-cache, no-store"}
    body = {**usual, "max_tokens": 1, "stream": False, **request.body}
    async with session.post(url + request.path, json=body, headers=headers) as reply:
        await _refuse(reply)
    until = time.monotonic() + _WARM_SECONDS
    models = await _models(session, url)
    for model in models:
        while time.monotonic() < until:
            async with session.post(url + "/v1/embeddings", json={"model": model, "input": "a"}) as reply:
                if reply.status != 503:
                    break
            await asyncio.sleep(0.1)


async def _models(session: aiohttp.ClientSession, url: str) -> list[str]:
    async with session.get(url + "/v1/models") as reply:
        return [model["id"] for model in (await reply.json())["data"]]


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    request: Request,
    usual: dict[str, object],
    found: Replay,
    place: int,
) -> None:
    start = time.perf_counter()
    pieces: list[str] = []
    async with session.post(url + request.path, json={**usual, **request.body}) as reply:
        await _refuse(reply)
        found.outcomes[place] = reply.headers.get("x-penstock-cache", "")
        found.models[place] = reply.headers.get("x-penstock-model", "")
        async for line in reply.content:
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == _DONE:
                break
            event = json.loads(data)
            if "error" in event:
                raise TuneError(f"The server failed: {event['error'].get('message')}")
            for choice in event.get("choices") or ():
                text = choice.get("text") or (choice.get("delta") or {}).get("content")
                if text:
                    if not pieces:
                        found.first_token[place] = time.perf_counter() - start
                    pieces.append(text)
    found.last_token[place] = time.perf_counter() - start
    if not pieces:
        found.first_token[place] = found.last_token[place]
    found.texts[place] = "".join(pieces)


async def _refuse(reply: aiohttp.ClientResponse) -> None:
    if reply.status != 200:
        content = await reply.text()
        raise TuneError(f"The server refuses a request with {reply.status}: {content[:300]}")
