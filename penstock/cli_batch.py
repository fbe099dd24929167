"""`penstock batch`: a file of requests to the API, in the format of OpenAI's batches.

The server's own application answers them, here or elsewhere: what it serves can be in a batch, and is checked, cached and
answered as it always is. A batch that was cut goes on where it was.
"""

import asyncio
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from .cli_jsonl import lines_of, work_through
from .cli_talk import base_url, served_models
from .config import Settings
from .errors import ConfigError

if TYPE_CHECKING:
    import aiohttp

ATTEMPTS = 6
# A server that is full, limits rates, or is being restarted, answers the same request later.
LATER = (429, 503)
# What takes longer, as a budget that is used up, is for another run.
MAX_WAIT_SECONDS = 60.0
JSON = "application/json"
# Of every result's line.
BEGINNING = b'{"id":"batch_req_'


class Line(msgspec.Struct, frozen=True):
    """One request; its body is sent as it stands."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


def run(settings: Settings, arguments: Mapping[str, Any]) -> int:
    """1 when a request failed, else 0."""
    import uvloop

    source, output = Path(arguments["input"]), Path(arguments["output"])
    errors = output if arguments["errors"] is None else Path(arguments["errors"])
    if arguments["concurrency"] < 1:
        raise ConfigError(
            f"concurrency is {arguments['concurrency']}; it must be at least 1.", param="concurrency"
        )
    if source.resolve() in (output.resolve(), errors.resolve()):
        raise ConfigError(f"{source} is to be read; write to another file.", param="output")
    lines = _read_batch(source)
    done = _keep(output, _succeeded)
    todo = [line for line in lines if line.custom_id not in done]
    asked_again = {line.custom_id for line in todo}
    _keep(errors, lambda result: result["custom_id"] not in asked_again)
    for file in (output, errors):
        try:
            file.open("ab").close()
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}.", param="output") from error
    try:
        failed = uvloop.run(_answer_all(settings, arguments, todo, output, errors, len(lines) - len(todo)))
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        raise
    if failed:
        print(f"{failed} of {len(todo)} requests failed; see {errors}.", file=sys.stderr)
    return 1 if failed else 0


def _read_batch(source: Path) -> list[Line]:
    """Raises ConfigError naming the file and the line at fault: a batch is right before any of it is sent."""
    lines: list[Line] = []
    places: dict[str, int] = {}
    for number, text in enumerate(lines_of(source), 1):
        if not text.strip():
            continue
        where = f"{source}, line {number}"
        try:
            line = msgspec.json.decode(text, type=Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f'{where}: {error}. A line is {{"custom_id": "...", "method": "POST", "url": "/v1/...", "body": {{}}}}.',
                param="input",
            ) from error
        # A path of the server's API: never another host, which would be sent the key.
        if not line.url.startswith("/v1/"):
            raise ConfigError(f"{where}: url is {line.url!r}; it must begin with /v1/.", param="input")
        if line.custom_id in places:
            raise ConfigError(
                f"{where}: custom_id {line.custom_id!r} is also that of line {places[line.custom_id]}; results could not "
                "be told apart.",
                param="input",
            )
        places[line.custom_id] = number
        lines.append(line)
    return lines


def _succeeded(result: Mapping[str, Any]) -> bool:
    response = result.get("response")
    return isinstance(response, dict) and response.get("status_code", 500) < 400


def _keep(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> set[str]:
    """Leaves the wanted results of an earlier run in a file, and no half line of a run that was killed; their custom_ids.

    Raises ConfigError, and leaves the file alone, where it holds anything else.
    """
    if not file.exists():
        return set()
    *whole, torn = lines_of(file)
    results = [_result(file, number, text) for number, text in enumerate(whole, 1)]
    if not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
        raise _foreign(file, len(whole) + 1)
    kept = [result for result in results if wanted(result)]
    if torn or len(kept) < len(results):
        # At once: whoever stops us leaves the file as it was, or as it is to be.
        beside = file.with_name(f"{file.name}.{os.getpid()}.new")
        beside.write_bytes(b"".join(map(_encoded, kept)))
        os.replace(beside, file)
    return {result["custom_id"] for result in kept}


def _result(file: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        result = msgspec.json.decode(text)
    except msgspec.DecodeError:
        result = None
    if not isinstance(result, dict) or not isinstance(result.get("custom_id"), str):
        raise _foreign(file, number)
    return result


def _foreign(file: Path, number: int) -> ConfigError:
    return ConfigError(f"{file}, line {number}: no result of a batch; write to another file.", param="output")


def _encoded(result: Mapping[str, Any]) -> bytes:
    from .proxy.sse import one_line

    return one_line(msgspec.json.encode(result)) + b"\n"


async def _answer_all(
    settings: Settings,
    arguments: Mapping[str, Any],
    todo: list[Line],
    output: Path,
    errors: Path,
    done: int,
) -> int:
    """How many requests failed."""
    if not todo:
        return 0
    async with _session(settings, arguments) as session:
        # Unbuffered: a line is written whole or not at all.
        with output.open("ab", buffering=0) as good, errors.open("ab", buffering=0) as bad:

            async def answer(line: Line) -> bool:
                result = await _answer(session, line)
                succeeded = _succeeded(result)
                (good if succeeded else bad).write(_encoded(result))
                return succeeded

            return await work_through(todo, answer, concurrency=arguments["concurrency"], done=done)


@asynccontextmanager
async def _session(
    settings: Settings, arguments: Mapping[str, Any]
) -> AsyncIterator["aiohttp.ClientSession"]:
    """To the server of --url, or to one of our own that ends with it."""
    import aiohttp

    key = arguments["api_key"]
    headers = {"Content-Type": JSON, **({"Authorization": f"Bearer {key}"} if key else {})}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    if arguments["url"] is not None:
        url = base_url(arguments["url"])
        async with aiohttp.ClientSession(
            url, headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
        ) as session:
            await served_models(session, url)
            yield session
        return
    if key is None:
        # Whoever can start the server needs no key of it, and is nobody's tenant.
        settings = msgspec.structs.replace(settings, api_keys=(), tenants=False, admin_port=None)
    async with _served_here(settings) as path:
        connector = aiohttp.UnixConnector(path, limit=0)
        async with aiohttp.ClientSession(
            "http://penstock", headers=headers, timeout=timeout, connector=connector
        ) as session:
            yield session


@asynccontextmanager
async def _served_here(settings: Settings) -> AsyncIterator[str]:
    """Serves the model on a socket in a folder that only this user can enter; its path."""
    from .models.embedding_location import choose_embedding_model
    from .proxy.server import engines_of, serve
    from .scheduler import AsyncEmbedder

    embedding_model = choose_embedding_model(settings.embedding_model)
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        path = str(Path(folder) / "server")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            ready = asyncio.get_running_loop().create_future()
            engine, tiers = engines_of(settings)
            serving = asyncio.create_task(
                serve(
                    settings,
                    engine,
                    sock,
                    None if embedding_model is None else AsyncEmbedder(embedding_model),
                    tiers=tiers,
                    on_ready=lambda _: ready.set_result(None),
                    manages=False,
                    signals=(),
                )
            )
            try:
                await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
                yield path
            finally:
                serving.cancel()
                with suppress(asyncio.CancelledError):
                    await serving


async def _answer(session: "aiohttp.ClientSession", line: Line) -> dict[str, Any]:
    """The result of one request, asked again as long as the server says that it could answer later."""
    import aiohttp

    response = error = None
    for attempt in count(1):
        wait = 0.5 * 2**attempt
        try:
            async with session.post(line.url, data=bytes(line.body)) as reply:
                if reply.content_type != JSON:
                    error = _error("not_json", f"The reply is {reply.content_type}; leave out 'stream'.")
                    break
                content = await reply.read()
            response, error = _response(reply, content), None
            if reply.status not in LATER:
                break
            wait = _seconds(reply.headers.get("Retry-After")) or wait
        except (aiohttp.ClientError, TimeoutError) as failure:
            response, error = None, _error("unreachable", f"The server could not be asked: {failure}.")
        except ValueError as failure:
            response, error = None, _error("not_json", f"The reply is not valid JSON: {failure}.")
            break
        if attempt == ATTEMPTS or wait > MAX_WAIT_SECONDS:
            break
        await asyncio.sleep(wait)
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }


def _response(reply: "aiohttp.ClientResponse", content: bytes) -> dict[str, Any]:
    return {
        "status_code": reply.status,
        "request_id": reply.headers.get("x-request-id", ""),
        "body": msgspec.json.decode(content),
    }


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


def _seconds(retry_after: str | None) -> float | None:
    """None for what is no number: it may be a date."""
    try:
        return float(retry_after or "")
    except ValueError:
        return None
