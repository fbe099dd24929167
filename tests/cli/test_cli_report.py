"""`penstock report` adds up: two workers answer, fail and are left; its sums are their access log's, to the token."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from fake_upstream import FakeUpstream, fake_upstream
from penstock_command import start
from tiny_encoder import write_tiny_encoder
from tiny_model import write_tiny_model

from penstock.cli import main
from penstock.proxy.observe.hourly import GATHERING_SECONDS
from penstock.proxy.observe.savings import Lever, savings_of
from penstock.proxy.tenants.tenants import TenantStore
from penstock.proxy.tenants.totals import HOUR, KEPT_HOURS, Place, Row, Saved, Total
from penstock.report_page import report_page

# As the access log names them -> as the report does.
SUMS = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost")


@dataclass
class Served:
    url: str
    folder: Path
    upstream: FakeUpstream
    process: Any

    async def ask(self, question: str, **fields: Any) -> str | None:
        """What the cache did. Over a connection of its own, which either worker may take."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "max_tokens": 12}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v1/chat/completions", json=body | fields) as reply,
        ):
            await reply.read()
            return reply.headers.get("x-penstock-cache")

    async def ask_until(self, outcome: str, question: str, **fields: Any) -> None:
        """What one worker has stored, the other finds once it is on disk."""
        async with asyncio.timeout(30):
            while True:
                if await self.ask(question, **fields) == outcome:
                    return
                await asyncio.sleep(0.05)

    async def leave(self) -> None:
        """After the first piece of a long answer."""
        body = {"model": "tiny", "prompt": "abc", "max_tokens": 400, "ignore_eos": True, "stream": True}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v1/completions", json=body) as reply,
        ):
            await reply.content.readany()


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    model, encoder = (
        write_tiny_model(tmp_path / "tiny"),
        write_tiny_encoder(tmp_path / "encoder", hidden_size=256),
    )
    async with fake_upstream() as upstream:
        settings = tmp_path / "penstock.toml"
        settings.write_text(f"""
            access_log = "json"
            local_hour_price = 3.6
            [upstreams.cloud]
            base_url = "{upstream.url}"
            retries = 0
            models.m = {{input = 2.0, cached_input = 0.5, output = 8.0}}
            models.dear = {{input = 20.0, output = 80.0}}
            [upstreams.gone]
            base_url = "http://127.0.0.1:9/v1"
            retries = 0
            models.nobody = {{input = 1.0, output = 1.0}}
            models.unpriced = {{}}
            [routes.quick]
            targets = ["gone/nobody", "cloud/m", "cloud/dear"]
            [routes.unpriced]
            targets = ["cloud/m", "gone/unpriced"]
            """)
        process, url = await asyncio.to_thread(
            start,
            *("--config", str(settings), "--workers", "2", "--model", str(model)),
            *("--embedding-model", str(encoder), "--cache-similarity", "0.001", "--speculation", "on"),
            *("--cache-path", str(tmp_path / "cache"), "--tenants-path", str(tmp_path / "tenants")),
        )
        yield Served(url, tmp_path, upstream, process)
        if process.poll() is None:
            process.kill()
        process.wait()


async def all_kinds(served: Served) -> None:
    # Ends by itself after eight tokens, so that it is kept.
    deterministic = {"temperature": 0, "min_tokens": 8, "logit_bias": {"256": 100}}
    place, outcome = 0, ""
    async with asyncio.timeout(30):
        while outcome != "draft":  # the embedder is started by the first question
            outcome = await served.ask(f"one question {place}", **deterministic)
            place += 1
            await asyncio.sleep(0.05)
    for _ in range(4):
        await served.ask_until("hit", "one question 0", **deterministic)
    long = {"temperature": 0, "max_tokens": 300, "ignore_eos": True}
    outcomes = await asyncio.gather(*(served.ask("all at once", **long) for _ in range(6)))
    assert "shared" in outcomes
    assert await served.ask("sampled", temperature=1.0) == "bypass"
    assert await served.ask("hello", model="quick", temperature=0) == "miss"
    await served.ask_until("hit", "hello", model="quick", temperature=0)
    await served.ask("hello", model="unpriced", temperature=1.0)
    served.upstream.usage = None
    await served.ask("without usage", model="cloud/m")
    served.upstream.status = 500
    await served.ask("it fails", model="cloud/m")
    await served.ask("of nobody", model="no-such-model")
    await served.ask("too much", max_tokens=-1)
    for _ in range(3):
        await served.leave()
    async with aiohttp.ClientSession() as session:
        await session.post(
            f"{served.url}/v1/embeddings", json={"model": encoder_name(served), "input": ["abc", "d e"]}
        )
        await session.get(f"{served.url}/health")


def encoder_name(served: Served) -> str:
    return (served.folder / "encoder").name


def report(served: Served, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["report", "--tenants-path", str(served.folder / "tenants"), *arguments]) == 0
    return capsys.readouterr().out


async def first_look(served: Served) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{served.url}/dashboard/events") as events:
        while await events.content.readline() != b"event: look\n":
            pass
        return json.loads((await events.content.readline()).removeprefix(b"data: "))


async def test_its_totals_are_those_of_the_access_log(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    await all_kinds(served)
    await asyncio.sleep(4 * GATHERING_SECONDS)
    running = json.loads(report(served, capsys, "--json"))
    look = await first_look(served)
    served.process.terminate()
    out, _ = await asyncio.to_thread(served.process.communicate)
    assert served.process.returncode == 0
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    counted = [line for line in lines if line["model_asked"] is not None]
    assert {line["cache"] for line in counted} >= {"hit", "miss", "draft", "shared", "bypass", None}
    assert sum(line["aborted"] for line in counted) == 3 and len(lines) > len(counted)

    seen = Counter(line["cache"] for line in counted if line["cache"] is not None)
    assert look["cache"]["outcomes"] == seen, "the dashboard has the figures of both workers"
    assert look["savings"]["total"] == running["total"]

    found = json.loads(report(served, capsys, "--json"))
    assert running | {"until": None} == found | {"until": None}, "while it runs and after it ended"
    total = found["total"]
    assert total["requests"] == len(counted)
    for name in SUMS:
        assert total[name] == pytest.approx(sum(line[name] or 0 for line in counted), rel=1e-12), name
        assert isinstance(total[name], float if name == "cost" else int)
    assert total["saved_seconds"] == pytest.approx(
        sum(line["saved_ms"] or 0 for line in counted) / 1000, abs=1e-4
    )
    assert sum(total["saved_cost"].values()) == pytest.approx(
        sum(line["saved_cost"] or 0 for line in counted)
    )
    assert total["saved_cost"]["routing"] > 0 and total["saved_cost"]["cache"] > 0
    assert total["aborted"] == 3
    assert total["failed"] == sum(line["error"] is not None and not line["aborted"] for line in counted) == 3
    assert total["unknown_usage"] >= 1 and total["unknown_cost"] >= 1

    for table, field in (("outcomes", "cache"), ("models", "model"), ("tenants", "tenant")):
        rows = {row["name"]: row for row in found[table]}
        assert Counter({name: row["requests"] for name, row in rows.items()}) == Counter(
            line[field] or "" for line in counted
        )
        for name, row in rows.items():
            own = [line for line in counted if (line[field] or "") == name]
            for figure in SUMS[:3]:
                assert row[figure] == sum(line[figure] or 0 for line in own), (table, name, figure)

    assert found["baseline"]["cost"] == pytest.approx(total["cost"] + sum(total["saved_cost"].values()))
    shown = report(served, capsys)
    assert report(served, capsys, "--html", str(served.folder / "report.html")).startswith("Written: ")
    assert f"{total['requests']:,}" in (served.folder / "report.html").read_text()
    assert f"{total['completion_tokens']:,} of answers" in shown and "Assumed:" in shown
    levers = {lever["name"]: lever for lever in found["levers"]}
    (unpriced,) = [line for line in counted if line["model_asked"] == "unpriced"]
    assert unpriced["cost"] > 0 and unpriced["saved_cost"] is None
    assert levers["routing"]["unknown"] == 1
    assert "What routing saved in 1 answers nobody knows" in shown
    hits = [line for line in counted if line["cache"] == "hit"]
    assert levers["exact hits"]["requests"] == len(hits)
    assert levers["exact hits"]["tokens"] == sum(
        line["prompt_tokens"] + line["completion_tokens"] for line in hits
    )


async def test_what_a_killed_worker_has_told_is_there(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    await served.ask("hello")
    await asyncio.sleep(4 * GATHERING_SECONDS)
    for child in psutil.Process(served.process.pid).children(recursive=True):
        child.kill()
    served.process.kill()
    assert json.loads(report(served, capsys, "--json"))["total"]["requests"] == 1


SINCE = 1_000 * HOUR
ROWS = [
    Row(
        Place(1000, "acme", "m", "miss"),
        # One more than those that it alone was asked for: a small tier was asked before, and took most of the time.
        Total(
            requests=5,
            completion_tokens=50,
            waited_seconds=20.0,
            cost=2.0,
            alone_tokens=40,
            alone_seconds=8.0,
        ),
    ),
    Row(
        Place(1001, "acme", "m", "trusted"),
        Total(
            requests=2,
            prompt_tokens=6,
            completion_tokens=20,
            saved_seconds=5.0,
            saved={"cache": Saved(2, 1.0)},
        ),
    ),
    Row(
        Place(1001, "bolt", "m", "draft"),
        Total(
            requests=3, completion_tokens=30, waited_seconds=1.5, cost=0.5, alone_tokens=30, alone_seconds=1.5
        ),
    ),
    Row(
        Place(1001, "bolt", "<b>", "draft"),
        Total(requests=1, completion_tokens=9, waited_seconds=1.0, alone_tokens=9, alone_seconds=1.0),
    ),
]


def test_what_levers_saved_and_what_nobody_knows() -> None:
    savings = savings_of(ROWS[:3], since=SINCE, until=SINCE + 2 * HOUR)
    levers = {lever.name: lever for lever in savings.levers}
    trusted, drafts = levers["trusted hits"], levers["drafts"]
    assert (trusted.requests, trusted.tokens, trusted.cost, trusted.seconds) == (2, 26, 1.0, 5.0)
    assert (drafts.requests, drafts.seconds, drafts.is_estimate) == (3, 30 * 0.2 - 1.5, True)
    assert (savings.baseline_cost, savings.saved_share) == (3.5, pytest.approx(1 / 3.5))
    assert (savings.baseline_seconds, savings.saved_seconds) == (20 + 1.5 + 5 + 4.5, 9.5)
    assert savings_of(
        [Row(ROWS[0].place, Total(saved={"routing": Saved(unknown=1)}))], since=0, until=1
    ).levers[-1] == (Lever(name="routing", requests=0, tokens=0, cost=None, seconds=None, unknown=1))
    # A model without misses tells nothing of what its drafts saved.
    unknown = savings_of(ROWS, since=SINCE, until=SINCE + 2 * HOUR)
    assert next(lever for lever in unknown.levers if lever.is_estimate).seconds is None


def test_the_page_is_one_file_that_escapes_names() -> None:
    page = report_page(savings_of(ROWS, since=SINCE, until=SINCE + 2 * HOUR))
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page and "src=" not in page
    assert page.count("<rect") == 4 and "1970-02-11T16:00:00Z" in page


def test_old_rows_go_with_time(tmp_path: Path) -> None:
    store = TenantStore(tmp_path / "tenants")
    for hour in (1000, 1001, 1000 + KEPT_HOURS):
        store.totals.add({Place(hour, "acme", "m", "miss"): Total(requests=1)}, hour * HOUR)
    store.totals.add(
        {Place(1001 + KEPT_HOURS, "acme", "m", "hit"): Total(requests=1)}, (1001 + KEPT_HOURS) * HOUR
    )
    assert [row.place.hour for row in store.totals.rows(0)] == [1001, 1000 + KEPT_HOURS, 1001 + KEPT_HOURS]
    store.close()


def test_what_cannot_be_reported_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--tenants-path", str(tmp_path / "tenants"))
    TenantStore(tmp_path / "tenants").close()
    assert main(["report", *where]) == 0
    assert "No request named a model" in capsys.readouterr().out
    for wrong, said in (("a week", "since is 'a week'; it must be seconds"), ("99d", "kept for 35 days")):
        assert main(["report", *where, "--since", wrong]) == 1
        assert said in capsys.readouterr().err


def test_merging_adds_every_figure() -> None:
    names = [name for name in Total.__struct_fields__ if name != "saved"]
    figures = {name: place + 1 for place, name in enumerate(names)}
    total = Total(**figures, saved={"cache": Saved(1, 2.0, 3.0)})
    total.merge(Total(**figures, saved={"cache": Saved(1, 2.0, 3.0), "routing": Saved(4)}))
    assert total == Total(
        **{name: 2 * value for name, value in figures.items()},
        saved={"cache": Saved(2, 4.0, 6.0), "routing": Saved(4)},
    )
