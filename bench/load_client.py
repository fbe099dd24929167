"""Loads an OpenAI-compatible streaming endpoint on this machine and reports latency and throughput.

    python bench/load_client.py --requests 64 --concurrency 16 --prompt-tokens 128 --max-tokens 128
    python bench/load_client.py --prompts prompts.txt --endpoint completions --json out.json

As a module: `await run_load(LoadPlan(...))` gives a `LoadReport`. Knows the wire format only, nothing of
Penstock.

Definitions: TTFT, from sending the request to the first piece of text. ITL, gaps between pieces of text as
they arrive (a piece may hold several tokens). TPOT, (last piece - first piece) / (tokens - 1), tokens as the
server's usage counts them. E2E, from sending to the end of the stream. A stream without finish_reason or
[DONE] is an error.
"""

import argparse
import asyncio
import ipaddress
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import aiohttp
import orjson
import uvloop

MAX_REQUESTS = 100_000
MAX_CONCURRENCY = 4096
MAX_SECONDS = 3600.0
_WORDS = (
    *(
        "water",
        "gate",
        "opens",
        "stream",
        "small",
        "files",
        "runs",
        "through",
        "pipe",
        "every",
        "list",
        "user",
    ),
    *(
        "command",
        "line",
        "shows",
        "how",
        "many",
        "bytes",
        "left",
        "disk",
        "when",
        "process",
        "writes",
        "others",
    ),
    *("read", "from", "again", "first", "find", "directory", "name", "before", "after", "change", "print"),
)


class Prompts(Protocol):
    def __call__(self, number: int) -> str:
        """The prompt of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What to send, and when to stop.

    Attributes:
        prompt: gives each request's prompt.
        url: the server's base, http://127.0.0.1:8000/v1; only loopback addresses are accepted.
        seconds: no request is begun after this time, and those under way are cut.
        warmup: requests sent first, and not measured.
        cache: let a completion cache answer; otherwise it is asked, in Penstock's header, not to.
        keep_alive: use a connection again; llama.cpp's server closes its own after a stream without saying so.
        extra: further fields of each request.
    """

    prompt: Prompts
    url: str = "http://127.0.0.1:8000/v1"
    model: str | None = None
    endpoint: Literal["chat", "completions"] = "chat"
    requests: int = 64
    concurrency: int = 16
    max_tokens: int = 128
    seconds: float = 120.0
    warmup: int = 0
    api_key: str | None = None
    cache: bool = False
    keep_alive: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _within("requests", self.requests, 1, MAX_REQUESTS)
        _within("concurrency", self.concurrency, 1, MAX_CONCURRENCY)
        _within("max_tokens", self.max_tokens, 1, 1_000_000)
        _within("seconds", self.seconds, 0.1, MAX_SECONDS)
        _within("warmup", self.warmup, 0, MAX_REQUESTS)
        refuse_unless_loopback(self.url)


@dataclass(slots=True)
class Outcome:
    """One request as its client saw it; times in seconds, `ended` 0 until it was whole.

    By perf_counter: uvloop's own clock counts whole milliseconds.
    """

    started: float
    pieces: list[float] = field(default_factory=list)
    """When each piece of text arrived."""
    ended: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    mean: float
    p50: float
    p99: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What one run showed. A None is unknown, never zero."""

    completed: int
    failed: int
    unfinished: int
    """Cut at the time limit."""
    errors: dict[str, int]
    finish_reasons: dict[str, int]
    concurrency: int
    seconds: float
    requests_per_second: float
    prompt_tokens: int | None
    output_tokens: int | None
    output_tokens_per_second: float | None
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    e2e: Spread | None
    client_cpu: float
    """Share of one core this client used; near 1, it was the client that was measured."""

    def table(self) -> str:
        rows = [f"{'ms':<10}{'mean':>10}{'p50':>10}{'p99':>10}{'worst':>10}"]
        for name in ("ttft", "itl", "tpot", "e2e"):
            spread: Spread | None = getattr(self, name)
            if spread is None:
                rows.append(f"{name.upper():<10}{'unknown':>10}")
            else:
                cells = (spread.mean, spread.p50, spread.p99, spread.worst)
                rows.append(f"{name.upper():<10}" + "".join(f"{cell:>10.2f}" for cell in cells))
        rate = self.output_tokens_per_second
        rows += [
            "",
            f"{self.completed} completed, {self.failed} failed, {self.unfinished} cut at the time limit; "
            f"{self.concurrency} at once, {self.seconds:.2f} s, {self.requests_per_second:.2f} requests/s",
            f"output {_shown(self.output_tokens)} tokens, {_shown(rate)} tokens/s; "
            f"prompts {_shown(self.prompt_tokens)} tokens; client CPU {self.client_cpu:.0%} of a core",
        ]
        rows += [f"error x{count}: {text}" for text, count in self.errors.items()]
        return "\n".join(rows)

    def json(self) -> str:
        return json.dumps(asdict(self))


async def run_load(plan: LoadPlan, *, on_done: Callable[[Outcome], None] | None = None) -> LoadReport:
    """Keeps `concurrency` streams open until `requests` were sent or `seconds` are over."""
    async with _session(plan) as session:
        model = plan.model or await _first_model(session, plan.url)
        await _drive(session, plan, model, range(-plan.warmup, 0), None)
        cpu, begin = time.process_time(), time.perf_counter()
        outcomes = await _drive(session, plan, model, range(plan.requests), on_done)
        return summarise(plan, outcomes, time.perf_counter() - begin, time.process_time() - cpu)


async def _drive(
    session: aiohttp.ClientSession,
    plan: LoadPlan,
    model: str,
    numbers: range,
    on_done: Callable[[Outcome], None] | None,
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    waiting: Iterator[int] = iter(numbers)

    async def one_stream() -> None:
        for number in waiting:
            outcome = Outcome(time.perf_counter())
            outcomes.append(outcome)
            await _request(session, plan, model, plan.prompt(number), outcome)
            if on_done is not None:
                on_done(outcome)

    streams = [asyncio.create_task(one_stream()) for _ in range(min(plan.concurrency, len(numbers)))]
    if streams:
        _, late = await asyncio.wait(streams, timeout=plan.seconds)
        for stream in late:
            stream.cancel()
        for result in await asyncio.gather(*streams, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    return outcomes


async def _request(
    session: aiohttp.ClientSession, plan: LoadPlan, model: str, prompt: str, outcome: Outcome
) -> None:
    body = _body(plan, model, prompt)
    path = "/chat/completions" if plan.endpoint == "chat" else "/completions"
    outcome.started = time.perf_counter()
    try:
        async with session.post(
            plan.url.rstrip("/") + path, data=orjson.dumps(body), allow_redirects=False
        ) as response:
            if response.status != 200:
                text = (await response.content.read(500)).decode(errors="replace")
                outcome.error = f"HTTP {response.status}: {text}"
                return
            await _read_stream(response, outcome)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        outcome.error = f"{type(error).__name__}: {error}"


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    done = False
    async for data in _events(response):
        if data == b"[DONE]":
            done = True
            continue
        event = orjson.loads(data)
        if "error" in event:
            outcome.error = f"in the stream: {orjson.dumps(event['error']).decode()[:500]}"
            return
        for choice in event.get("choices", ()):
            if choice.get("text") or choice.get("delta", {}).get("content"):
                outcome.pieces.append(time.perf_counter())
            outcome.finish_reason = choice.get("finish_reason") or outcome.finish_reason
        if usage := event.get("usage"):
            outcome.prompt_tokens = usage.get("prompt_tokens")
            outcome.completion_tokens = usage.get("completion_tokens")
    if not done or outcome.finish_reason is None:
        outcome.error = "the stream ended without finish_reason and [DONE]"
    else:
        outcome.ended = time.perf_counter()


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of each server-sent event, as soon as its last byte is here."""
    rest = b""
    async for received in response.content.iter_any():
        *events, rest = (rest + received).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield b"\n".join(lines)


def summarise(plan: LoadPlan, outcomes: Sequence[Outcome], seconds: float, cpu_seconds: float) -> LoadReport:
    failed = [outcome for outcome in outcomes if outcome.error]
    whole = [outcome for outcome in outcomes if not outcome.error and outcome.ended]
    texts = [outcome for outcome in whole if outcome.pieces]
    gaps = [
        later - earlier for one in texts for earlier, later in zip(one.pieces, one.pieces[1:], strict=False)
    ]
    per_token = [
        (one.pieces[-1] - one.pieces[0]) / (one.completion_tokens - 1)
        for one in texts
        if one.completion_tokens is not None and one.completion_tokens > 1
    ]
    output = _total([outcome.completion_tokens for outcome in whole])
    return LoadReport(
        completed=len(whole),
        failed=len(failed),
        unfinished=len(outcomes) - len(whole) - len(failed),
        errors=dict(Counter(outcome.error or "" for outcome in failed).most_common(10)),
        finish_reasons=dict(Counter(outcome.finish_reason or "" for outcome in whole)),
        concurrency=plan.concurrency,
        seconds=seconds,
        requests_per_second=len(whole) / seconds,
        prompt_tokens=_total([outcome.prompt_tokens for outcome in whole]),
        output_tokens=output,
        output_tokens_per_second=None if output is None else output / seconds,
        ttft=_spread([one.pieces[0] - one.started for one in texts]),
        itl=_spread(gaps),
        tpot=_spread(per_token),
        e2e=_spread([one.ended - one.started for one in whole]),
        client_cpu=cpu_seconds / seconds,
    )


def refuse_unless_loopback(url: str) -> None:
    """Raises ValueError unless `url` is plain HTTP to this machine: no tool to load others' servers."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if parts.scheme != "http" or not loopback:
        raise ValueError(f"{url} is not on this machine; give http://127.0.0.1:PORT/v1, localhost or [::1].")


class SyntheticPrompts:
    """Random English words, different for each request, so that neither cache nor prefix reuse helps.

    Args:
        words: length. `fit_words` finds the number of words that makes a wanted number of tokens.
    """

    def __init__(self, words: int, seed: int = 0) -> None:
        self._words, self._seed = words, seed

    def __call__(self, number: int) -> str:
        chosen = random.Random(f"{self._seed}/{number}").choices(_WORDS, k=self._words)
        return " ".join([str(number), *chosen])


async def fit_words(plan: LoadPlan, tokens: int) -> int:
    """Words that come to about `tokens` prompt tokens on this server, chat template included: asks it."""
    words = max(1, tokens // 2)
    async with _session(plan) as session:
        model = plan.model or await _first_model(session, plan.url)
        for attempt in range(5):
            outcome = Outcome(0.0)
            probe = SyntheticPrompts(words, seed=-1 - attempt)(0)
            one_token = LoadPlan(
                prompt=plan.prompt,
                url=plan.url,
                endpoint=plan.endpoint,
                max_tokens=1,
                keep_alive=plan.keep_alive,
                extra=plan.extra,
            )
            await _request(session, one_token, model, probe, outcome)
            if outcome.error:
                raise ValueError(f"The server refused a prompt of {words} words: {outcome.error}")
            if outcome.prompt_tokens is None:
                raise ValueError("The server reports no usage, so prompts of a given length cannot be made.")
            if abs(outcome.prompt_tokens - tokens) <= max(1, tokens // 100):
                break
            words = max(1, round(words * tokens / outcome.prompt_tokens))
    return words


def file_prompts(path: Path) -> Prompts:
    """One prompt a line: text, or a JSON string or object with a `prompt`; repeated as needed."""
    prompts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        value: object = orjson.loads(line) if line[0] in '{"' else line
        text = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ValueError(f"{path}: a line is neither text nor an object with a 'prompt': {line[:80]}")
        prompts.append(text)
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line.")
    return lambda number: prompts[number % len(prompts)]


def _body(plan: LoadPlan, model: str, prompt: str) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": plan.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if plan.endpoint == "chat":
        asked["messages"] = [{"role": "user", "content": prompt}]
    else:
        asked["prompt"] = prompt
    return asked | plan.extra


def _session(plan: LoadPlan) -> aiohttp.ClientSession:
    headers = {"content-type": "application/json"}
    if plan.api_key:
        headers["authorization"] = f"Bearer {plan.api_key}"
    if not plan.cache:
        headers["x-penstock-cache-control"] = "no-cache, no-store"
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0, force_close=not plan.keep_alive),
        timeout=aiohttp.ClientTimeout(total=None, connect=10.0),
        trust_env=False,
    )


async def _first_model(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url.rstrip("/") + "/models", allow_redirects=False) as response:
        response.raise_for_status()
        return str(orjson.loads(await response.read())["data"][0]["id"])


def _spread(seconds: list[float]) -> Spread | None:
    if not seconds:
        return None
    ordered = sorted(second * 1e3 for second in seconds)
    mean = sum(ordered) / len(ordered)
    return Spread(mean, _percentile(ordered, 0.5), _percentile(ordered, 0.99), ordered[-1])


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(0, rank - 1)]


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}".removesuffix(".0")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be between {low} and {high}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Load an OpenAI-compatible streaming endpoint on this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="base URL; loopback only")
    parser.add_argument("--model", help="model name; default: the first the server lists")
    parser.add_argument("--endpoint", choices=("chat", "completions"), default="chat")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit")
    parser.add_argument("--warmup", type=int, default=2, help="requests sent first and not measured")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompts", type=Path, help="file with one prompt a line (text or JSONL)")
    what.add_argument("--prompt-tokens", type=int, default=128, help="length of synthetic prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic prompts")
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--cache", action="store_true", help="let a completion cache answer")
    parser.add_argument(
        "--extra", type=orjson.loads, default={}, help='JSON of further fields: {"ignore_eos": true}'
    )
    parser.add_argument("--json", type=Path, help="write the JSON there instead of printing it")
    return parser.parse_args()


async def _main(options: argparse.Namespace) -> int:
    def plan(prompt: Prompts) -> LoadPlan:
        names = ("url", "model", "endpoint", "requests", "concurrency", "max_tokens", "seconds", "warmup")
        given = {name: getattr(options, name) for name in (*names, "api_key", "cache", "extra")}
        return LoadPlan(prompt=prompt, **given)

    if options.prompts is not None:
        prompt = file_prompts(options.prompts)
    else:
        words = await fit_words(plan(SyntheticPrompts(1)), options.prompt_tokens)
        prompt = SyntheticPrompts(words, options.seed)
    report = await run_load(plan(prompt))
    print(report.table())
    if options.json is None:
        print(report.json())
    else:
        options.json.write_text(report.json() + "\n", encoding="utf-8")
    return 1 if report.failed or not report.completed else 0


def main() -> None:
    try:
        sys.exit(uvloop.run(_main(_arguments())))
    except (ValueError, aiohttp.ClientError, OSError) as error:
        sys.exit(f"load_client: {error}")


if __name__ == "__main__":
    main()
