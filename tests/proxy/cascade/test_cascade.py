"""A small tier answers, and its answer is kept or not: what the client gets, what is computed, and what is told of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from running_server import RunningServer, running_server
from simple_router import QUALITY, write_router

from penstock.proxy.observe.hourly import total_of
from penstock.proxy.tenants.tenant import Tenant
from penstock.tables import Route, Tier

ROUTE = "x-penstock-route"
KEPT = "cascade; kept; p=0.75; needs=0.50; by=question_mark"
ESCALATED = "cascade; escalated; p=0.25; needs=0.50"
HOUR = 3600.0
# An answer that ends by itself, and so is kept, after six tokens.
ENDS = {"min_tokens": 6, "logit_bias": {"256": 100}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(
    engine_address: str,
    small_address: str,
    model: Path,
    small_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("cascade")
    router = write_router(folder / "router.json", "small", "tiny", buffers=(0, 4))
    twins = write_router(folder / "twins.json", "twin", "tiny")
    async with running_server(
        engine_address,
        model,
        speculation="on",  # float32: guessing is for those who ask for it
        tiers={"small": Tier(model=str(small_model)), "twin": Tier(model=str(model))},
        # An engine of its own would give the same.
        tier_addresses={"small": small_address, "twin": engine_address},
        routes={
            "best": Route(targets=("small", "tiny"), policy="cascade", router=router, quality=QUALITY),
            "early": Route(
                targets=("small", "tiny"), policy="cascade", router=router, quality=QUALITY, buffer_tokens=4
            ),
            "guess": Route(targets=("small", "tiny"), policy="predictive", router=router),
            "twins": Route(targets=("twin", "tiny"), policy="cascade", router=twins, quality=QUALITY),
        },
        local_hour_price=HOUR,
        cache_path=folder / "completions",
        tenants_path=folder / "tenants",
    ) as running:
        yield running


def body(model: str, text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 24, **fields}


async def ask(
    server: RunningServer, path: str = "/v1/chat/completions", key: str = "", **fields: Any
) -> tuple[dict[str, str], Any]:
    """Headers, and the body, or of a stream the events."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + path, json=fields, headers=headers) as reply,
    ):
        assert reply.status == 200, await reply.text()
        text = await reply.text()
        found = {name.lower(): value for name, value in reply.headers.items()}
        if not fields.get("stream"):
            return found, json.loads(text)
        assert text.endswith("data: [DONE]\n\n")
        return found, [json.loads(event[6:]) for event in text.split("\n\n")[:-2]]


def said(reply: Any) -> str:
    if isinstance(reply, list):
        return "".join(choice["delta"].get("content") or "" for event in reply for choice in event["choices"])
    content: str = reply["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["best", "early"])
async def test_an_answer_that_is_good_enough_is_the_small_tiers(
    server: RunningServer, route: str, stream: bool
) -> None:
    _, alone = await ask(server, **body("small", f"{route} {stream}?"))
    headers, reply = await ask(server, **body(route, f"{route} {stream}?", stream=stream))
    assert said(reply) == said(alone) != ""
    assert (headers["x-penstock-model"], headers[ROUTE]) == ("small", KEPT)
    first = reply[0] if stream else reply
    assert first["model"] == "small"
    assert 'logprob":' not in json.dumps(reply), "the judge's, not the client's"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["best", "early"])
async def test_one_that_is_not_is_the_large_tiers(server: RunningServer, route: str, stream: bool) -> None:
    headers, reply = await ask(server, **body(route, f"{route} {stream}", stream=stream))
    assert headers["x-penstock-model"] == "tiny"
    assert headers[ROUTE].startswith(ESCALATED)
    _, alone = await ask(server, **body("tiny", f"{route} {stream}"))
    assert said(reply) == said(alone) != ""
    assert "prediction_tokens" not in json.dumps(reply), "nobody predicted anything"


async def test_log_probabilities_are_shown_as_far_as_they_were_asked_for(server: RunningServer) -> None:
    for _ in range(2):  # the second from the cache
        _, reply = await ask(server, **body("best", "with two?", logprobs=True, top_logprobs=2))
        tokens = reply["choices"][0]["logprobs"]["content"]
        assert tokens and all(len(token["top_logprobs"]) == 2 for token in tokens)
    _, alone = await ask(server, **body("small", "with two?", logprobs=True, top_logprobs=2))
    assert alone["choices"][0]["logprobs"]["content"] == tokens


async def test_what_was_kept_before_is_judged_again(server: RunningServer) -> None:
    question = body("best", "the same?", **ENDS)
    first, reply = await ask(server, **question)
    assert reply["choices"][0]["finish_reason"] == "stop", "or it is not kept"
    again, repeated = await ask(server, **question)
    assert (first["x-penstock-cache"], again["x-penstock-cache"]) == ("miss", "hit")
    assert again[ROUTE] == first[ROUTE] == KEPT
    assert said(repeated) == said(reply)


async def test_what_the_large_tier_has_said_before_comes_first(server: RunningServer) -> None:
    _, large = await ask(server, **body("tiny", "known?", **ENDS))
    assert large["choices"][0]["finish_reason"] == "stop", "or it is not kept"
    headers, reply = await ask(server, **body("best", "known?", **ENDS))
    assert headers[ROUTE] == "cascade; cached"
    assert (headers["x-penstock-model"], headers["x-penstock-cache"]) == ("tiny", "hit")
    assert said(reply) == said(large)


async def test_what_the_small_tier_wrote_is_the_large_ones_draft(server: RunningServer) -> None:
    """Of a copy of itself, so that all of it is right: hundreds of tokens in few steps."""
    fields = {"max_tokens": 200, "logit_bias": server.spelling(), "ignore_eos": True}
    plain = server.engine.stats.steps
    _, alone = await ask(
        server, **body("tiny", "drafted", **fields), penstock={"cache": {"mode": "off"}, "drafters": []}
    )
    plain = server.engine.stats.steps - plain
    before = dict(server.engine.stats.drafters)
    headers, reply = await ask(server, **body("twins", "drafted", **fields))
    assert headers[ROUTE].startswith(ESCALATED)
    assert said(reply) == said(alone)
    after = server.engine.stats.drafters["draft"]
    accepted = after.accepted - (before["draft"].accepted if "draft" in before else 0)
    assert accepted > 150


async def test_several_answers_are_not_judged(server: RunningServer) -> None:
    headers, reply = await ask(server, **body("best", "two?", n=2))
    assert headers[ROUTE] == "cascade; unjudged"
    assert (reply["model"], len(reply["choices"])) == ("tiny", 2)
    headers, reply = await ask(server, "/v1/completions", model="best", prompt=["a?", "b?"], max_tokens=2)
    assert (headers[ROUTE], reply["model"]) == ("cascade; unjudged", "tiny")


async def test_where_the_small_tier_cannot_the_large_one_answers(server: RunningServer) -> None:
    headers, reply = await ask(server, **body("best", "x" * 200 + "?"))  # it reads 128 tokens
    assert (headers[ROUTE], reply["model"]) == ("cascade; failed", "tiny")


@pytest.mark.parametrize("route", ["best", "guess"])
async def test_one_that_is_down_is_not_waited_for(
    server: RunningServer, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.http.context.locals["small"].backend.engine
    monkeypatch.setattr(engine, "healthy", False)
    headers, reply = await ask(server, **body(route, "down?"))
    assert headers[ROUTE].split("; ")[1] == "failed"
    assert reply["model"] == "tiny"


async def test_a_wrong_request_is_refused_once(server: RunningServer) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/chat/completions", json=body("best", "?", temperature=-1)) as reply,
    ):
        assert reply.status == 400
        assert (await reply.json())["error"]["param"] == "temperature"


@pytest.mark.parametrize(("text", "who"), [("kept?", "small"), ("escalated", "tiny")])
async def test_every_api_has_it(server: RunningServer, text: str, who: str) -> None:
    shared = {"model": "best", "temperature": 0}
    replies = await asyncio.gather(
        ask(server, "/v1/completions", prompt=text, max_tokens=8, **shared),
        ask(server, "/v1/responses", input=text, max_output_tokens=16, **shared),
        ask(server, "/v1/messages", messages=[{"role": "user", "content": text}], max_tokens=8, **shared),
    )
    assert [reply["model"] for _, reply in replies] == [who] * 3
    assert len({headers[ROUTE] for headers, _ in replies}) == 1


@pytest.mark.parametrize(("text", "who", "word"), [("small?", "small", "small"), ("large", "tiny", "large")])
async def test_a_tier_is_picked_by_the_question_alone(
    server: RunningServer, text: str, who: str, word: str
) -> None:
    headers, reply = await ask(server, **body("guess", text))
    _, alone = await ask(server, **body(who, text))
    assert headers[ROUTE].startswith(f"predictive; {word}; p=0.")
    assert (reply["model"], said(reply)) == (who, said(alone))


@pytest.mark.parametrize("text", ["leave?", "leave"])
async def test_a_client_that_leaves_ends_whatever_computes(server: RunningServer, text: str) -> None:
    fields = body("best", text, max_tokens=100, ignore_eos=True)
    engines = [local.backend.engine for local in server.http.context.locals.values()]
    for seconds in (0.02, 0.05, 0.1):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session:
            with suppress(TimeoutError):
                await session.post(f"{server.url}/v1/chat/completions", json=fields)
        async with asyncio.timeout(5):
            while any(engine.stats.num_running or engine.stats.num_waiting for engine in engines):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.mark.parametrize(("text", "asked"), [("left?", ["small"]), ("left", ["small", "tiny"])])
async def test_what_a_client_that_left_has_taken_is_known(
    server: RunningServer, text: str, asked: list[str]
) -> None:
    assert server.store is not None
    counters = server.store.counters

    async def spent() -> float:
        # Those who left before have paid first.
        async with asyncio.timeout(5):
            while server.http.context.edge.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        counters.pay()
        return sum(line.account.cost for line in counters.lines(None))

    before = await spent()
    fields = body("early", text, max_tokens=100, ignore_eos=True, stream=True)
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{server.url}/v1/chat/completions", json=fields) as reply:
            await reply.content.readany()
        await session.close()
    record = await server.record(reply.headers["x-request-id"])
    assert record.aborted and record.model == asked[-1]
    assert record.cost == pytest.approx(await spent() - before) != 0, "of all that were asked"
    assert record.completion_tokens is not None and 0 < record.completion_tokens < 100


async def test_the_same_at_the_same_time_is_computed_once_a_tier(server: RunningServer) -> None:
    replies = await asyncio.gather(*(ask(server, **body("best", "all together")) for _ in range(4)))
    assert {headers[ROUTE][: len(ESCALATED)] for headers, _ in replies} == {ESCALATED}
    assert len({said(reply) for _, reply in replies}) == 1
    outcomes = [headers["x-penstock-cache"] for headers, _ in replies]
    assert sorted(outcomes) == ["miss", "shared", "shared", "shared"]


async def test_what_an_escalated_answer_waited_is_not_what_its_model_takes(server: RunningServer) -> None:
    for question, alone in (("alone?", True), ("after another", False)):
        headers, reply = await ask(server, **body("best", question))
        record = await server.record(headers["x-request-id"])
        assert record.outcome == "miss"
        total, tokens = total_of(record), reply["usage"]["completion_tokens"]
        assert (total.completion_tokens, total.waited_seconds) == (tokens, record.engine_seconds)
        expected = (tokens, record.engine_seconds) if alone else (0, 0.0)
        assert (total.alone_tokens, total.alone_seconds) == expected


async def test_decisions_are_counted_and_logged(server: RunningServer) -> None:
    async def counted() -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(f"{server.url}/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return {
            name: float(value)
            for name, value in (
                line.rsplit(" ", 1) for line in lines if line.startswith("penstock_cascade_total")
            )
        }

    before = await counted()
    await ask(server, **body("best", "counted?"))
    await ask(server, **body("best", "counted"))
    after = await counted()
    for decision in ("kept", "escalated"):
        name = f'penstock_cascade_total{{decision="{decision}",route="best"}}'
        assert after[name] - before.get(name, 0) == 1


# The last here: a server that has had a key is open to nobody without one any more.
async def test_both_tiers_are_paid_for_and_the_saving_is_what_is_left(server: RunningServer) -> None:
    assert server.store is not None
    server.store.directory.put_tenant(Tenant(name="acme"))
    key = server.store.directory.create_key("acme").text
    await ask(server, **body("tiny", "so that its price is known"), key=key)

    async def accounts() -> dict[str, Any]:
        return {line.model: line.account for line in server.store.counters.lines("acme")}  # type: ignore[union-attr]

    await ask(server, **body("best", "to be paid"), key=key)
    after = await accounts()
    assert after["small"].requests == 1 and after["small"].engine_seconds > 0
    assert after["small"].saved["routing"].cost == pytest.approx(-after["small"].cost), "for nothing"
    assert after["tiny"].requests == 2 and not after["tiny"].saved
    escalated = after["small"]
    await ask(server, **body("best", "to be paid?"), key=key)
    after = await accounts()
    cost = after["small"].cost - escalated.cost
    saved = after["small"].saved["routing"].cost - escalated.saved["routing"].cost
    tokens = after["small"].prompt_tokens + after["small"].completion_tokens
    tokens -= escalated.prompt_tokens + escalated.completion_tokens
    large = server.http.context.locals["tiny"].service.account.expected_cost(tokens)
    assert saved == pytest.approx(large - cost)
