"""The dashboard in a real browser: its figures move under load, it chats, takes keys, and fits a phone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from browser import CHROMIUM, Page, browser_page
from fake_upstream import FakeUpstream, fake_upstream
from running_admin import running_admin
from running_server import RunningServer, running_server
from simple_router import QUALITY, write_router

from penstock.proxy.tenants.tenant import Tenant
from penstock.tables import Route, Tier, Upstream, UpstreamModel

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (apt-get install chromium)")

LIVE = "document.getElementById('state').dataset.state === 'live'"
LAST = "document.querySelector('.talk > :last-child')"
IDLE = "document.getElementById('stop').hidden"
# Of an answer with 100 prompt tokens, 40 of them cached, and 10 more.
COST = (60 * 2 + 40 * 0.5 + 10 * 8) / 1e6


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    async with browser_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Page, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setattr("penstock.proxy.dashboard.lookout.SAVINGS_SECONDS", 0.5)
    # The page before may not yet have been told that its server is gone, and would say so in this test.
    await browser.open("about:blank")
    browser.said.clear()
    return browser


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(
    engine_address: str, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[RunningServer, FakeUpstream]]:
    """Open to all; its first model is an upstream's."""
    folder = tmp_path_factory.mktemp("page")
    async with fake_upstream() as upstream:
        prices = UpstreamModel(input=2.0, cached_input=0.5, output=8.0)
        settings: dict[str, Any] = {
            "upstreams": {"cloud": Upstream(base_url=upstream.url, models={"m": prices}, retries=0)},
            "routes": {"quick": Route(targets=("cloud/m", "tiny"))},
            "cache_path": folder / "cache",
            "tenants_path": folder / "tenants",
        }
        async with running_server(engine_address, model, **settings) as server:
            yield server, upstream


async def say(page: Page, text: str) -> None:
    await page.value("document.getElementById('message').focus()")
    await page.type(text)
    await page.press("Enter")


async def chosen(page: Page, model: str) -> None:
    await page.until(
        f"[...document.getElementById('model').options].some(option => option.value === '{model}')"
    )
    await page.value(f"document.getElementById('model').value = '{model}'")


async def test_figures_move_under_load(page: Page, served: tuple[RunningServer, FakeUpstream]) -> None:
    server, _ = served
    await page.open(f"{server.url}/dashboard")
    await page.until(LIVE)
    await page.until("document.querySelector('.tile .value').textContent === '0.0/s'")
    client, stop = server.client(), asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            await client.completions.create(
                model="tiny", prompt="abc", max_tokens=5, extra_body={"ignore_eos": True}
            )
            await client.chat.completions.create(model="quick", messages=[{"role": "user", "content": "hi"}])
            await asyncio.sleep(0.02)

    loading = asyncio.create_task(load())
    try:
        shown = "[...document.querySelectorAll('.tile .value')].map(value => parseFloat(value.textContent))"
        await page.until(f"{shown}.slice(0, 4).every(number => number > 0)")
        await page.until("document.querySelector('.tile .line').getAttribute('d').split('L').length > 4")
        await page.until("document.querySelectorAll('#upstream-rows tr').length === 1")
        assert (await page.text("#upstream-rows")).split()[:2] == ["cloud", "closed"]
        assert "cloud/m" in await page.text("#routes") and "bypass" in await page.text("#rung-legend")
        # Totals are written, and read, now and then.
        await page.until("document.querySelector('#saved-sums > :last-child dd').innerText !== '0'")
    finally:
        stop.set()
        await loading
    described = await page.value("document.querySelector('.tile .spark').getAttribute('aria-label')")
    assert described.startswith("Tokens: ") and "/s" in described
    assert page.said == []


async def test_a_chat_tells_what_became_of_each_answer(
    page: Page, served: tuple[RunningServer, FakeUpstream]
) -> None:
    server, upstream = served
    await page.open(f"{server.url}/dashboard")
    await chosen(page, "m")
    assert await page.value("document.getElementById('key').hidden"), "a server without keys asks for none"
    await say(page, "is it kept? <b>")
    await page.until(f"{IDLE} && {LAST}.innerText.includes('ask again')")
    said = await page.text(".talk > :last-child")
    assert said.startswith("hello") and f"cost {COST:.6f}" in said
    assert "miss" in said and "cloud/m" in said and "100 + 10 tokens" in said and "first " in said
    assert await page.text(".said.user") == "is it kept? <b>", "text, never HTML"
    # Again, by the keyboard alone.
    await page.value(f"{LAST}.querySelector('.link').focus()")
    await page.press("Enter")
    await page.until(f"{IDLE} && {LAST}.innerText.includes('ask again') && {LAST}.innerText.includes('hit')")
    assert f"cost 0, saved {COST:.6f}" in await page.text(".talk > :last-child")
    # What comes next has the conversation before it.
    await say(page, "and then?")
    await page.until(f"{IDLE} && {LAST}.innerText.includes('ask again')")
    assert [turn["role"] for turn in upstream.asked[-1]["messages"]] == ["user", "assistant", "user"]
    await page.value("document.getElementById('clear').click()")
    assert await page.value("document.querySelectorAll('.said').length") == 0
    upstream.status = 500
    await say(page, "fail")
    await page.until(f"{IDLE} && !!{LAST}.querySelector('.bad')")
    upstream.status = 200
    assert await page.text(".talk > :last-child .bad") == "no", "what the server said"
    assert len(page.said) == 1 and "status of 50" in page.said[0]


async def test_an_answer_is_stopped_and_the_engine_is_free(
    page: Page, served: tuple[RunningServer, FakeUpstream]
) -> None:
    server, _ = served
    await page.open(f"{server.url}/dashboard")
    await chosen(page, "tiny")
    await page.value("document.getElementById('fresh').checked = true")
    await say(page, "tell me all")
    await page.until(f"!{IDLE} && {LAST}.innerText.length > 10")
    await page.press("Escape")
    await page.until(f"{IDLE} && {LAST}.innerText.includes('stopped')")
    await server.idle()
    assert page.said == []


async def test_a_phone_in_the_dark(page: Page, served: tuple[RunningServer, FakeUpstream]) -> None:
    server, _ = served
    ground = "getComputedStyle(document.body).backgroundColor"
    await page.open(f"{server.url}/dashboard", width=360, height=740, dark=True)
    await page.until(LIVE)
    await page.until("!document.getElementById('saved').hidden")
    assert await page.value("document.documentElement.scrollWidth") == 360
    assert await page.value(ground) == "rgb(15, 18, 19)"
    assert await page.value("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    # The switch is what the second Tab comes to; it holds for the next visit, too.
    await page.press("Tab")
    assert await page.value("document.activeElement.className") == "skip"
    await page.press("Tab")
    assert await page.value("document.activeElement.id") == "theme"
    await page.press("Space")
    assert await page.value(ground) == "rgb(247, 247, 245)"
    await page.open(f"{server.url}/dashboard", width=360, height=740, dark=True)
    assert await page.value(ground) == "rgb(247, 247, 245)"
    await page.value("localStorage.clear()")
    assert page.said == []


async def test_all_can_be_reached_by_the_keyboard(
    page: Page, served: tuple[RunningServer, FakeUpstream]
) -> None:
    server, _ = served
    await page.open(f"{server.url}/dashboard")
    await page.until(LIVE)
    await page.until("!document.getElementById('saved').hidden")
    await page.value("document.body.focus()")
    reached = []
    for _ in range(10):
        await page.press("Tab")
        reached.append(await page.value("document.activeElement.id || document.activeElement.tagName"))
    wanted = ["theme", "SUMMARY", "model", "talk", "message", "fresh", "send"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
    unnamed = """[...document.querySelectorAll('button, input, select, textarea, summary')]
        .filter(control => !control.closest('[hidden]') && !(control.innerText || control.labels?.[0]?.innerText)).length"""
    assert await page.value(unnamed) == 0


async def test_the_operator_shows_the_key_and_sees_tenants(
    page: Page, engine_address: str, model: Path, tmp_path: Path
) -> None:
    async with running_server(engine_address, model, tenants_path=tmp_path / "tenants") as server:
        assert server.store is not None
        server.store.directory.put_tenant(Tenant(name="acme"))
        key = server.store.directory.create_key("acme").text
        async with running_admin(server, "letmein") as url:
            await page.open(f"{url}/dashboard")
            await page.until("!document.getElementById('gate').hidden")
            for given in ("wrong", "letmein"):
                await page.until("document.activeElement.id === 'admin-key'")
                await page.type(given)
                await page.press("Enter")
                if given == "wrong":
                    await page.until("document.getElementById('gate-error').innerText !== ''")
            await page.until(LIVE)
            assert await page.value("document.getElementById('gate').hidden")
            # A chat is a tenant's, with limits and accounts as any other.
            await say(page, "hello")
            await page.until(f"{IDLE} && !!{LAST}.querySelector('.bad')")
            await page.value("document.getElementById('key').focus()")
            await page.type(key)
            await say(page, "hello")
            await page.until(f"{IDLE} && {LAST}.innerText.includes('tiny')")
            await page.until("document.getElementById('tenant-rows').innerText.startsWith('acme')")
            assert (
                await page.value("localStorage.length + sessionStorage.length + document.cookie.length") == 0
            )
            assert all("401" in said for said in page.said) and len(page.said) == 3


async def test_a_learned_route_tells_what_it_promises_and_decides(
    page: Page, engine_address: str, small_address: str, model: Path, small_model: Path, tmp_path: Path
) -> None:
    router = write_router(tmp_path / "router.json", "small", "tiny")
    async with running_server(
        engine_address,
        model,
        tiers={"small": Tier(model=str(small_model))},
        tier_addresses={"small": small_address},
        routes={"best": Route(targets=("small", "tiny"), policy="cascade", router=router, quality=QUALITY)},
    ) as server:
        await page.open(f"{server.url}/dashboard")
        await chosen(page, "best")
        # The judge keeps what is answered to a question.
        for text, decision, tier in (("is it?", "kept", "small"), ("it is", "escalated", "tiny")):
            await say(page, text)
            await page.until(f"{IDLE} && {LAST}.innerText.includes('ask again')")
            told = await page.text(".talk > :last-child .told")
            assert decision in told and tier in told
            await page.value("document.getElementById('clear').click()")
        await page.until("document.getElementById('decisions').innerText.includes('escalated 50 %')")
        decisions = await page.text("#decisions")
        assert "90 %, kept from p 0.50 on" in decisions and "kept 50 %" in decisions
        assert await page.value("document.querySelectorAll('.engine').length") == 2
        assert page.said == []
