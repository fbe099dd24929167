"""Whether a judge keeps its promise: what a draw is, when a promise is broken, and what follows."""

import asyncio
import random
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from running_server import running_server
from simple_router import QUALITY, write_router

from penstock.proxy.cascade.answer_text import answer_text
from penstock.proxy.cascade.drift import DELTA, Drift, Drifts, evidence_against
from penstock.proxy.cascade.question import question_in
from penstock.proxy.reload import apply
from penstock.tables import Route, Tier


def drift(**changes: Any) -> Drift:
    given = {"share": 1.0, "hourly_tokens": 3600, "promise": 0.1, "draw": lambda: 0.5}
    return Drift("r", **{**given, **changes})


def test_a_promise_that_is_kept_is_seldom_called_broken_at_whatever_time_one_looks() -> None:
    rng = random.Random(1)
    broken = 0
    for _ in range(300):
        watched = drift()
        for _ in range(400):
            watched.saw(loss=rng.random() < 0.1)
        broken += watched.broken
    assert broken <= 300 * DELTA * 3


def test_a_promise_that_is_not_kept_is_soon_called_broken(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(2)
    for _ in range(20):
        watched = drift()
        while not watched.broken:
            watched.saw(loss=rng.random() < 0.3)
            assert watched.draws < 300
    assert "The route r does not keep its promise" in caplog.text
    assert evidence_against(0.1, 0, 1000) == 0.0
    assert evidence_against(0.1, 3, 3) == pytest.approx(10**3 / 4 / 0.9, rel=0.01), (
        "the mixture's own formula"
    )


def test_looking_stays_within_its_share_and_its_budget() -> None:
    now = [0.0]
    assert not drift(share=0.0).wants()
    assert not drift(share=0.4).wants()
    assert not drift(hourly_tokens=0).wants()
    watched = drift(clock=lambda: now[0])
    assert watched.wants() and watched.reserve(3600)
    assert not watched.wants() and not watched.reserve(1), "that is being spent"
    watched.settle(3600, 3500)
    assert watched.wants() and watched.reserve(110), "more than is left"
    watched.settle(110, 110)
    now[0] = 9.0
    assert not watched.wants(), "until that is made up for"
    now[0] = 11.0
    assert watched.wants()
    now[0] = 1e9
    assert watched.reserve(3600)
    assert not watched.wants(), "hours without requests save nothing up"


def test_looking_is_no_matter_of_what_it_may_take() -> None:
    """Or what is looked at would not be like the rest."""
    now = [0.0]
    watched = drift(hourly_tokens=10, clock=lambda: now[0])
    reserved = watched.reserve(10**12)
    assert reserved and not watched.wants()
    watched.settle(reserved, 5)
    assert watched.wants()
    assert watched.reserve(10**12)  # and nobody tells what it took: no client's limit ends looking for good
    now[0] = 2 * 3600.0
    assert watched.wants()


def test_the_same_route_keeps_what_is_known_of_it() -> None:
    drifts = Drifts()
    route = Route(
        targets=("a", "b"),
        policy="cascade",
        router=Path("r"),
        quality=0.9,
        shadow_share=0.1,
        shadow_budget=10,
    )
    first = drifts.of("r", "file", route, quality=0.9, workers=1)
    assert drifts.of("r", "file", route, quality=0.9, workers=1) is first
    assert drifts.of("r", "another file", route, quality=0.9, workers=1) is not first


@pytest.mark.parametrize(
    ("small", "outcome", "quality"),
    # Without a quality the route promises the strictest that the file has a threshold for.
    [("small", "different", QUALITY), ("small", "different", None), ("twin", "same", QUALITY)],
)
async def test_kept_answers_are_compared_behind_the_back_of_all(
    engine_address: str,
    small_address: str,
    model: Path,
    small_model: Path,
    tmp_path: Path,
    small: str,
    outcome: str,
    quality: float | None,
) -> None:
    router = write_router(tmp_path / "router.json", small, "tiny")
    route = Route(
        targets=(small, "tiny"),
        policy="cascade",
        router=router,
        quality=quality,
        shadow_share=1.0,
        shadow_budget=100_000,
    )
    async with (
        running_server(
            engine_address,
            model,
            tiers={"small": Tier(model=str(small_model)), "twin": Tier(model=str(model))},
            tier_addresses={"small": small_address, "twin": engine_address},
            routes={"best": route},
            tenants_path=tmp_path / "tenants",
        ) as server,
        aiohttp.ClientSession() as session,
    ):
        context = server.http.context
        (watched,) = context.drifts._known.values()

        async def ask(text: str) -> str:
            messages = [{"role": "user", "content": text}]
            fields = {"model": "best", "messages": messages, "temperature": 0, "max_tokens": 8}
            async with session.post(f"{server.url}/v1/chat/completions", json=fields) as reply:
                await reply.read()
            async with asyncio.timeout(10):
                while watched.pending:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            return reply.headers["x-penstock-route"].split("; ")[1]

        assert await ask("no draw that could be a loss") == "escalated"
        assert (watched.draws, watched.losses) == (1, 0)
        decisions = [await ask(f"{number}?") for number in range(5)]
        async with session.get(f"{server.url}/metrics") as reply:
            text = await reply.text()
        assert f'penstock_shadow_total{{outcome="{outcome}",route="best"}}' in text
        assert 'penstock_shadow_tokens_total{route="best"}' in text
        assert server.store is not None
        lines = {line.model: line.account.requests for line in server.store.counters.lines(None)}
        assert lines["tiny"] == 1 + decisions.count("drifted"), "no tenant pays for what is compared"
        if outcome == "same":
            assert decisions == ["kept"] * 5 and (watched.draws, watched.losses) == (6, 0)
            return
        broken = decisions.index("drifted")
        assert decisions == ["kept"] * broken + ["drifted"] * (5 - broken)
        assert (watched.losses, watched.draws) == (broken, broken + 1)
        assert 'penstock_shadow_total{outcome="broken",route="best"} 1.0' in text
        # Other settings forget nothing; other settings of the route do.
        apply(context, msgspec.structs.replace(context.settings, write_timeout=7.0))
        assert await ask("still?") == "drifted"
        again = msgspec.structs.replace(route, shadow_share=0.5)
        apply(context, msgspec.structs.replace(context.settings, routes={"best": again}))
        assert await ask("and now?") == "kept"


async def test_several_at_once_do_not_go_beyond_the_budget(
    engine_address: str, small_address: str, model: Path, small_model: Path, tmp_path: Path
) -> None:
    route = Route(
        targets=("small", "tiny"),
        policy="cascade",
        router=write_router(tmp_path / "router.json", "small", "tiny"),
        shadow_share=1.0,
        shadow_budget=20,
    )
    async with (
        running_server(
            engine_address,
            model,
            tiers={"small": Tier(model=str(small_model))},
            tier_addresses={"small": small_address},
            routes={"best": route},
        ) as server,
        aiohttp.ClientSession() as session,
    ):
        (watched,) = server.http.context.drifts._known.values()

        async def ask(text: str) -> None:
            # What it may take is more than all of the budget: that is no reason not to look.
            fields = {"model": "best", "prompt": text, "temperature": 0, "max_tokens": 100}
            async with session.post(f"{server.url}/v1/completions", json=fields) as reply:
                assert reply.headers["x-penstock-route"].startswith("cascade; kept")

        await asyncio.gather(*(ask(f"{number} at once?") for number in range(4)))
        async with asyncio.timeout(10):
            while watched.pending or not watched.draws:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert watched.draws == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}
                ]
            },
            "a",
        ),
        ({"input": "a"}, "a"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}, "a"),
        ({"prompt": "a"}, "a"),
        ({"prompt": ["a"]}, "a"),
        ({"prompt": [1, 2]}, ""),
        ({"messages": [{"role": "system", "content": "a"}]}, ""),
        ({"messages": [7]}, ""),
        ({}, ""),
    ],
)
def test_what_is_asked_is_found_in_any_api(fields: dict[str, Any], text: str) -> None:
    assert question_in(fields) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"choices": [{"message": {"content": "a"}}]}', "a"),
        (b'{"choices": [{"message": {"content": null}}]}', ""),
        (b'{"choices": [{"text": "a"}]}', "a"),
        (
            b'{"content": [{"type": "text", "text": "a"}, {"type": "tool_use", "name": "f", "input": {"y": 1, "x": 2}}]}',
            'a`f {"x":2,"y":1}`',
        ),
        (
            b'{"choices": [{"message": {"content": null, "tool_calls": [{"function": {"name": "f", "arguments": '
            b'"{\\"y\\": 1, \\"x\\": 2}"}}]}}]}',
            '`f {"x":2,"y":1}`',
        ),
        (b'{"output": [{"type": "function_call", "name": "f", "arguments": "{"}]}', '`f "{"`'),
        (b'{"output": [{"type": "reasoning"}, {"content": [{"text": "a"}, {"text": "b"}]}]}', "ab"),
        (b'{"output": [7]}', ""),
        (b"[]", ""),
        (b"{", ""),
    ],
)
def test_what_is_answered_is_found_in_any_api(body: bytes, text: str) -> None:
    assert answer_text(body) == text
