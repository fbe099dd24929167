"""Whom `chat` and `complete` talk to: a model loaded here, or a server elsewhere. Both answer alike."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from .config import Settings
from .errors import ConfigError, EngineDeadError, InvalidRequestError, PenstockError
from .scheduler import AsyncEngine, SamplingParams

if TYPE_CHECKING:
    import aiohttp


class Piece(msgspec.Struct, frozen=True):
    """Some text of an answer; the last has a finish_reason, and token counts where they are known."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Talker(Protocol):
    async def start(self) -> None: ...

    def answer(self, request: Mapping[str, Any], params: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        """`request` holds either "prompt" or "messages". Raises PenstockError when it is refused."""
        ...

    async def close(self) -> None: ...


def talker(settings: Settings, arguments: Mapping[str, Any]) -> Talker:
    url = arguments.get("url")
    if url is None:
        return LocalModel(settings)
    return Server(
        base_url(url),
        api_key=arguments.get("api_key"),
        model=settings.served_model_name,
    )


def base_url(url: str) -> str:
    """Without the /v1 of OpenAI's own. Raises ConfigError for what is no address of a server."""
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"url is {url!r}; write it as http://host:port.", param="url")
    return base


class LocalModel:
    """The engine as a child process of this command."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def start(self) -> None:
        import asyncio

        from .models.generation_defaults import GenerationDefaults
        from .models.tokenizer import Tokenizer
        from .proxy.server import engine_config

        self._engine = AsyncEngine(engine_config(self._settings))
        starting = asyncio.create_task(self._engine.start())
        await asyncio.sleep(0)
        try:
            self._tokenizer = Tokenizer.load(self._settings.model)
        except PenstockError:
            starting.cancel()
            await asyncio.wait([starting])
            raise
        self._engine.attach_tokenizer(self._tokenizer)
        await starting
        self._defaults = GenerationDefaults.load(Path(self._engine.info.path))

    @property
    def max_model_len(self) -> int:
        """Of prompt and answer together; once it has started."""
        return self._engine.info.max_model_len

    async def answer(
        self, request: Mapping[str, Any], params: Mapping[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        messages = request.get("messages")
        if messages is not None:
            token_ids = self._tokenizer.encode_chat(messages)
        else:
            if not isinstance(request["prompt"], str):
                raise InvalidRequestError("prompt must be a text.", param="prompt")
            token_ids = self._tokenizer.encode(request["prompt"])
        completion_tokens = 0
        asked = _sampling_params({**self._defaults.sampling, **params})
        async with aclosing(self._engine.generate(token_ids, asked)) as chunks:
            async for chunk in chunks:
                completion_tokens += len(chunk.token_ids)
                if chunk.finish_reason is None:
                    yield Piece(chunk.text)
                else:
                    yield Piece(chunk.text, chunk.finish_reason, len(token_ids), completion_tokens)

    async def close(self) -> None:
        await self._engine.shutdown()


class Server:
    """Any server with OpenAI's API."""

    def __init__(self, url: str, *, api_key: str | None, model: str | None) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model

    async def start(self) -> None:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(self._url, headers=self._headers, timeout=timeout)
        if self._model is None:
            try:
                self._model = (await served_models(self._session, self._url))[0]
            except BaseException:
                await self._session.close()
                raise

    async def answer(
        self, request: Mapping[str, Any], params: Mapping[str, Any]
    ) -> AsyncGenerator[Piece, None]:
        import aiohttp

        path = "/v1/chat/completions" if "messages" in request else "/v1/completions"
        body = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **request,
            **params,
        }
        finish_reason: str | None = None
        usage: dict[str, int] = {}
        ended = False
        try:
            async with self._session.post(path, json=body) as response:
                if response.status != 200:
                    raise refusal(await response.read(), response.status)
                async for line in response.content:
                    data = line.removeprefix(b"data:").strip()
                    if not line.startswith(b"data:") or not data:
                        continue
                    if data == b"[DONE]":
                        ended = True
                        break
                    event = json.loads(data)
                    if "error" in event:
                        raise refusal(data, response.status)
                    usage = event.get("usage") or usage
                    for choice in event["choices"]:
                        finish_reason = choice["finish_reason"] or finish_reason
                        yield Piece(choice.get("text") or choice.get("delta", {}).get("content") or "")
        except aiohttp.ClientError as error:
            raise EngineDeadError(f"{self._url} cannot be reached: {error}.") from error
        if not ended:
            raise EngineDeadError(f"{self._url} ended its stream half-way.")
        yield Piece("", finish_reason, usage.get("prompt_tokens"), usage.get("completion_tokens"))

    async def close(self) -> None:
        await self._session.close()


async def served_models(session: "aiohttp.ClientSession", url: str) -> list[str]:
    """What a server serves. Raises EngineDeadError when it cannot be reached, or what it says instead."""
    import aiohttp

    try:
        async with session.get("/v1/models") as response:
            content = await response.read()
    except aiohttp.ClientError as error:
        raise EngineDeadError(f"{url} cannot be reached: {error}.") from error
    if response.status != 200:
        raise refusal(content, response.status)
    return [model["id"] for model in json.loads(content)["data"]]


def _sampling_params(params: Mapping[str, Any]) -> SamplingParams:
    unknown = params.keys() - set(SamplingParams.__struct_fields__)
    if unknown:
        name = sorted(unknown)[0]
        raise InvalidRequestError(
            f"Unknown parameter {name!r}; this command takes SamplingParams' fields.", param=name
        )
    given = dict(params)
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]  # as OpenAI's API takes it
    try:
        return msgspec.convert(given, SamplingParams, str_keys=True)  # JSON has no other keys for logit_bias
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"A parameter is wrong: {error}.") from error


def refusal(body: bytes, status: int) -> PenstockError:
    """What a server says of a request that it did not answer."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {status}"
    return InvalidRequestError(message) if status < 500 else EngineDeadError(message)
