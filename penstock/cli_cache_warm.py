"""`penstock cache warm`: a log of requests, sent to a server so that its cache holds the answers.

What the cache has already is a hit, so a run that was cut is simply started again.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_jsonl import read_jsonl
from .cli_talk import base_url, refusal
from .errors import ConfigError, EngineDeadError, PenstockError

if TYPE_CHECKING:
    import aiohttp

_OUTCOMES = ("hit", "trusted", "draft", "miss", "bypass")
_SHOWN_ERRORS = 3


def warm(arguments: Mapping[str, Any]) -> int:
    """1 when a request failed, else 0. Raises ConfigError for a wrong file, EngineDeadError when there is no server."""
    import uvloop

    bodies = _bodies(Path(arguments["file"]))
    started = time.perf_counter()
    counted = uvloop.run(_send(arguments, bodies))
    seconds = time.perf_counter() - started
    told = [f"{counted[outcome]} {outcome}" for outcome in _OUTCOMES if counted[outcome]]
    told += [f"{counted['error']} failed"] if counted["error"] else []
    print(f"{len(bodies)} requests in {seconds:.1f} s: {', '.join(told) or 'nothing to do'}.")
    if counted["bypass"]:
        print(
            f"Never cached, {counted['bypass']}: sampled without a seed, or excluded by the server's settings."
        )
    if counted["cut"]:
        print(f"Cut at their limit of tokens and so not kept, {counted['cut']}.")
    return 1 if counted["error"] else 0


def _bodies(file: Path) -> list[dict[str, Any]]:
    bodies = read_jsonl(file)
    for number, body in enumerate(bodies, 1):
        if ("prompt" in body) == ("messages" in body):
            raise ConfigError(
                f"{file}, request {number}: it must hold either 'prompt' or 'messages'.", param="file"
            )
        if body.get("temperature") is None and body.get("seed") is None:
            body["temperature"] = 0
        # The log's own numbering, as `penstock complete` takes it, and what only says how the answer is sent.
        for name in ("id", "stream", "stream_options"):
            body.pop(name, None)
    return bodies


async def _send(arguments: Mapping[str, Any], bodies: list[dict[str, Any]]) -> Counter[str]:
    import aiohttp
    from tqdm import tqdm

    url = base_url(arguments["url"])
    key = arguments["api_key"]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    counted: Counter[str] = Counter()
    async with aiohttp.ClientSession(url, headers=headers, timeout=timeout) as session:
        model = await _model(session, url)
        todo = iter(bodies)
        with tqdm(total=len(bodies), unit="request") as bar:

            async def work() -> None:
                for body in todo:
                    try:
                        counted.update(await _ask(session, {"model": model} | body))
                    except PenstockError as error:
                        counted["error"] += 1
                        if counted["error"] <= _SHOWN_ERRORS:
                            bar.write(f"penstock cache: {error.message}", file=sys.stderr)
                    bar.update()

            async with asyncio.TaskGroup() as group:
                for _ in range(min(arguments["concurrency"], len(bodies))):
                    group.create_task(work())
    return counted


async def _model(session: "aiohttp.ClientSession", url: str) -> str:
    """What a body that names no model asks."""
    import aiohttp

    try:
        async with session.get("/v1/models") as reply:
            content = await reply.read()
    except (aiohttp.ClientError, ValueError) as error:
        raise EngineDeadError(f"{url} cannot be reached: {error}.") from error
    if reply.status != 200:
        raise refusal(content, reply.status)
    return str(json.loads(content)["data"][0]["id"])


async def _ask(session: "aiohttp.ClientSession", body: dict[str, Any]) -> list[str]:
    """The outcome, and "cut" where the answer was. Raises PenstockError when it was refused."""
    import aiohttp

    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    try:
        async with session.post(path, json=body) as reply:
            content = await reply.read()
    except aiohttp.ClientError as error:
        raise EngineDeadError(f"the server cannot be reached: {error}.") from error
    if reply.status != 200:
        raise refusal(content, reply.status)
    outcome = reply.headers.get("x-penstock-cache")
    if outcome is None:
        raise PenstockError("the server's replies have no x-penstock-cache: it is no Penstock server.")
    choices = json.loads(content)["choices"]
    return [outcome, *(["cut"] if any(choice["finish_reason"] == "length" for choice in choices) else [])]
