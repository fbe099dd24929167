"""Tiers that are upstreams: asked for log-probabilities, which the client sees only where it asked for them."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from faulty_upstream import Behaviour, Exchange, FaultyUpstream, faulty_upstream
from running_gateway import Gateway, running_gateway, settings_of
from simple_router import QUALITY, write_router

from penstock.errors import ConfigError
from penstock.tables import Route, UpstreamModel

ROUTE = "x-penstock-route"
KEPT = "cascade; kept; p=0.75; needs=0.50; by=question_mark"
ESCALATED = "cascade; escalated; p=0.25; needs=0.50"
WORDS = ("one", " two", " three", " four")
MODELS = {"m": UpstreamModel(input=1.0, output=1.0)}


def logprobs_of(word: str) -> dict[str, Any]:
    tops = [{"token": f"{word}{place}", "logprob": -0.1 - place, "bytes": []} for place in range(5)]
    return {"content": [{"token": word, "logprob": -0.1, "bytes": [], "top_logprobs": tops}], "refusal": None}


def judging(with_logprobs: bool = True) -> Behaviour:
    """Answers WORDS, with log-probabilities where they are asked for; usage where it is."""

    async def behaviour(exchange: Exchange) -> None:
        fields = exchange.fields
        shows = with_logprobs and fields.get("logprobs") is True
        usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        if not exchange.streams:
            content = [logprobs_of(word)["content"][0] for word in WORDS]
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(WORDS)},
                "logprobs": {"content": content, "refusal": None} if shows else None,
                "finish_reason": "stop",
            }
            whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            await exchange.reply(200, json.dumps(whole).encode())
            return
        await exchange.stream_head()
        events: list[dict[str, Any]] = [
            {
                "index": 0,
                "delta": {"content": word},
                "logprobs": logprobs_of(word) if shows else None,
                "finish_reason": None,
            }
            for word in WORDS
        ]
        events.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"})
        for choice in events:
            await exchange.chunk(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")
        if (fields.get("stream_options") or {}).get("include_usage"):
            last = {**head, "choices": [], "usage": usage}
            await exchange.chunk(b"data: " + json.dumps(last).encode() + b"\n\n")
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.last_chunk()

    return behaviour


@asynccontextmanager
async def gateway(
    folder: Path, **changes: Any
) -> AsyncIterator[tuple[Gateway, FaultyUpstream, FaultyUpstream]]:
    """Two upstreams, a route over them, and a cache."""
    async with faulty_upstream() as small, faulty_upstream() as large:
        small.usual = judging()
        router = write_router(folder / "router.json", "small/m", "large/m", buffers=(0, 2))
        route = {"targets": ("small/m", "large/m"), "policy": "cascade", "router": router, "quality": QUALITY}
        upstreams = {
            name: settings_of(upstream.url, models=MODELS)
            for name, upstream in (("small", small), ("large", large))
        }
        async with running_gateway(
            upstreams, routes={"best": Route(**{**route, **changes})}, cache_path=folder / "cache"
        ) as running:
            yield running, small, large


def body(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "best", "temperature": 0, "max_tokens": 16, "messages": messages, **fields}


def text_of(reply: Any) -> str:
    if not reply.headers["content-type"].startswith("text/event-stream"):
        message: str = json.loads(reply.body)["choices"][0]["message"]["content"]
        return message
    assert reply.events[-1] == b"[DONE]"
    events = [json.loads(event) for event in reply.events[:-1]]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("buffer_tokens", [0, 2])
async def test_the_small_one_is_judged_by_what_it_tells(
    tmp_path: Path, buffer_tokens: int, stream: bool
) -> None:
    async with gateway(tmp_path, buffer_tokens=buffer_tokens) as (running, small, large):
        kept = await running.post(body("good?", stream=stream))
        assert (text_of(kept), kept.headers[ROUTE]) == ("".join(WORDS), KEPT)
        assert kept.headers["x-penstock-model"] == "small/m"
        assert b'"top_logprobs"' not in kept.body
        asked = small.exchanges[0].fields
        assert (asked["logprobs"], asked["top_logprobs"], asked["model"]) == (True, 5, "m")
        assert (small.calls, large.calls) == (1, 0)
        told = await running.post(body("bad", stream=stream))
        assert (text_of(told), told.headers["x-penstock-model"]) == ("Hello world", "large/m")
        assert told.headers[ROUTE] == ESCALATED
        assert (small.calls, large.calls) == (2, 1)
        assert "logprobs" not in large.exchanges[0].fields


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_are_shown_as_far_as_they_were_asked_for(
    tmp_path: Path, stream: bool
) -> None:
    async with gateway(tmp_path) as (running, small, _):
        reply = await running.post(body("good?", stream=stream, logprobs=True, top_logprobs=1))
        assert small.exchanges[0].fields["top_logprobs"] == 5
        bodies = [json.loads(event) for event in reply.events[:-1]] if stream else [json.loads(reply.body)]
        tokens = [
            token
            for whole in bodies
            for choice in whole["choices"]
            for token in (choice["logprobs"] or {"content": []})["content"]
        ]
        assert [token["token"] for token in tokens] == list(WORDS)
        assert {len(token["top_logprobs"]) for token in tokens} == {1}


async def test_what_was_accepted_is_kept_as_that_and_what_was_not_is_not(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (running, small, large):
        for _ in range(2):
            reply = await running.post(body("good?"))
        assert (reply.headers["x-penstock-cache"], small.calls) == ("hit", 1)
        assert reply.headers[ROUTE] == "cascade; kept"
        assert (await running.post({**body("good?"), "model": "small/m"})).headers[
            "x-penstock-cache"
        ] == "miss"
        for _ in range(2):
            reply = await running.post(body("bad"))
        # The large one's answer is kept, and found before the small one is asked again.
        assert reply.headers[ROUTE] == "cascade; cached"
        assert (small.calls, large.calls) == (3, 1)


async def test_one_without_log_probabilities_is_never_kept(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (running, small, _):
        small.usual = judging(with_logprobs=False)
        reply = await running.post(body("good?"))
        assert reply.headers[ROUTE] == "cascade; escalated; p=0.00; needs=0.50; by=no_logprobs"
        assert reply.headers["x-penstock-model"] == "large/m"


@pytest.mark.parametrize("status", [500, 429, 400, 422])
async def test_where_the_small_one_fails_the_large_one_answers(tmp_path: Path, status: int) -> None:
    """A refusal, too: it may be of the log-probabilities, which nobody but the route asked for."""
    async with gateway(tmp_path) as (running, small, _):
        small.usual = lambda exchange: exchange.reply(status, b'{"error": {"message": "no logprobs here"}}')
        reply = await running.post(body("good?"))
        assert (reply.status, reply.headers[ROUTE]) == (200, "cascade; failed")
        assert text_of(reply) == "Hello world"


async def test_anothers_api_is_judged_too(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (running, _, _):
        for text, said in (("good?", "".join(WORDS)), ("bad", "Hello world")):
            fields = {"model": "best", "max_tokens": 16, "messages": [{"role": "user", "content": text}]}
            reply = await running.post(fields, "/v1/messages")
            assert json.loads(reply.body)["content"][0]["text"] == said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"small": "anthropic"}, "gives no log-probabilities to judge an answer by"),
        ({"quality": 0.99}, "no threshold that keeps the promise 0.99"),
        ({"quality": 0.5}, "has thresholds for 0.9, 0.99"),
        ({"buffer_tokens": 3}, "judges answers by 0 tokens"),
        ({"targets": ("large/m", "small/m")}, "made for the tiers 'small/m' and 'large/m', not 'large/m'"),
        ({"router": Path("nowhere.json")}, "nowhere.json cannot be read"),
        (
            {"policy": "predictive", "quality": QUALITY, "shadow_share": 0.5, "shadow_budget": 9},
            "shadow_share cannot look at what small/m says",
        ),
        ({"words": 3}, "needs embeddings by an-embedder, and this server has none"),
    ],
)
async def test_a_route_that_could_not_work_is_refused_at_the_start(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    given = dict(changes)
    upstreams = {
        name: settings_of("http://127.0.0.1:1/v1", models=MODELS, format=form)
        for name, form in (("small", given.pop("small", "openai")), ("large", "openai"))
    }
    embedder = "an-embedder" if given.pop("words", None) else None
    router = write_router(tmp_path / "router.json", "small/m", "large/m", embedding_model=embedder)
    route = {"targets": ("small/m", "large/m"), "policy": "cascade", "router": router, **given}
    with pytest.raises(ConfigError) as caught:
        async with running_gateway(upstreams, routes={"best": Route(**route)}, embedding_model="none"):
            pass
    assert caught.value.message.startswith("routes.best: ")
    assert re.search(says, caught.value.message)


async def test_what_was_spent_on_an_answer_that_is_not_used_is_counted(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (running, _, _):
        log: list[Any] = []
        running.http.context.recorder._sinks += (_Kept(log),)
        await running.post(body("good?"))
        await running.post(body("bad"))
        kept, escalated = log
        price = 11 / 1e6
        assert (kept.cost, kept.saved_cost) == (pytest.approx(price), pytest.approx(0.0, abs=1e-12))
        assert (escalated.cost, escalated.saved_cost) == (pytest.approx(2 * price), pytest.approx(-price))


class _Kept:
    """A sink of records."""

    def __init__(self, records: list[Any]) -> None:
        self._records = records

    def ended(self, record: Any) -> None:
        self._records.append(record)
