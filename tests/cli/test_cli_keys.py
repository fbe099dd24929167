"""`penstock keys` as a user runs it, and two workers that heed it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from penstock_command import PENSTOCK, start
from tiny_model import write_tiny_model

from penstock.cli import main
from penstock.proxy.tenants.spend import Saving, Spend
from penstock.proxy.tenants.tenants import Tenants, TenantStore

KEY = re.compile(r"psk-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs one action; what it printed, on which stream is said by `fails`."""

    def run(action: str, *arguments: str, fails: bool = False) -> str:
        code = main(["keys", action, "--tenants-path", str(tmp_path / "tenants"), *arguments])
        out, err = capsys.readouterr()
        assert (code != 0) == fails, err
        return err if fails else out

    return run


def test_a_key_is_shown_once(keys, tmp_path):
    found = KEY.search(made := keys("create", "acme", "--label", "laptop"))
    assert found is not None and "only time" in made
    secret = found[0].rpartition(found[1])[2]
    shown = [keys("list"), keys("list", "--json"), keys("show", "acme"), keys("show", "acme", "--json")]
    assert all(found[1] in one and secret not in one for one in shown)
    assert "laptop" in shown[0]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and not any(secret.encode() in file.read_bytes() for file in files)


def test_limits_are_set_and_taken_away(keys):
    keys(
        "create",
        "acme",
        "--rpm",
        "60",
        "--budget",
        "2.5",
        "--window",
        "day",
        "--models",
        "a, b",
        "--weight",
        "3",
    )
    shown = json.loads(keys("show", "acme", "--json"))
    assert shown["limits"] == {
        "rpm": 60,
        "tpm": None,
        "concurrency": None,
        "budget": 2.5,
        "window": "day",
    }
    assert (shown["models"], shown["weight"], shown["now"]["requests_left"]) == (["a", "b"], 3.0, 60)
    keys(
        "set",
        "acme",
        "--rpm",
        "none",
        "--models",
        "none",
        "--window",
        "none",
        "--cache",
        "draft",
        "--priority",
        "2",
    )
    shown = json.loads(keys("show", "acme", "--json"))
    assert (shown["limits"]["rpm"], shown["models"], shown["limits"]["window"]) == (None, None, "month")
    assert (shown["cache"], shown["priority"], shown["limits"]["budget"]) == ("draft", 2, 2.5)
    assert "2.5 (month, ends" in keys("show", "acme")
    for given, kept in (("off", False), ("on", True), ("off", False), ("none", True)):
        keys("set", "acme", "--prompts", given)
        assert json.loads(keys("show", "acme", "--json"))["prompts"] is kept
        assert ("never kept" in keys("show", "acme")) != kept
    assert "already; leave out --rpm" in keys("create", "acme", "--rpm", "5", fails=True)
    keys("create", "acme")
    assert len(json.loads(keys("show", "acme", "--json"))["keys"]) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set", "acme"), "Say what to change"),
        (("set", "acme", "--rpm", "0"), "rpm is 0; it must be at least 1"),
        (("set", "acme", "--rpm", "x"), "--rpm is 'x'; it must be a whole number, or 'none'"),
        (("set", "acme", "--budget", "-1"), "budget is -1; it must be an amount above 0"),
        (("set", "acme", "--window", "week"), "must be one of day, month, total"),
        (("set", "acme", "--prompts", "yes"), "--prompts is 'yes'; it must be one of on, off"),
        (("set", "nobody", "--rpm", "1"), "There is no tenant 'nobody'"),
        (("show", "nobody"), "There is no tenant 'nobody'"),
        (("create", "a b"), "The tenant's name is 'a b'"),
        (("revoke",), "Give either the ID of a key, or --tenant"),
        (("revoke", "0123456789ab"), "There is no key '0123456789ab'"),
        (("rotate", "0123456789ab", "--grace", "soon"), "grace is 'soon'"),
        (("usage", "--days", "0"), "days is 0"),
    ],
)
def test_a_mistake_is_one_line_that_helps(keys, arguments, says):
    keys("create", "acme")
    message = keys(*arguments, fails=True)
    assert says in message and message.count("\n") == 1


def test_keys_are_rotated_and_revoked(keys):
    first = KEY.search(keys("create", "acme"))
    second = KEY.search(keys("rotate", first[1], "--grace", "1h"))
    assert "ends 20" in keys("list")
    keys("revoke", second[0])
    listed = keys("list", "--all")
    assert f"{second[1]}" in listed and "ended 20" in listed and second[1] not in keys("list")
    assert "1 of its keys have ended" in keys("revoke", "--tenant", "acme")
    assert keys("list") == "There are no tenants; `penstock keys create NAME` makes one, and a key for it.\n"
    assert "acme: removed" in keys("list", "--all")


def test_usage_says_what_is_not_known(keys, tmp_path):
    keys("create", "acme")
    assert keys("usage") == "Nothing was used.\n"
    store = TenantStore(tmp_path / "tenants")
    with Tenants(store).admit(store.directory.tenant("acme"), model="m", tokens=9, cost=0.5) as admission:
        admission.call("m").settle(
            Spend(model="m", prompt_tokens=123, completion_tokens=45, cost=0.25, engine_seconds=90.0)
        )
        admission.call("m").settle(
            Spend(
                model="m",
                prompt_tokens=7,
                completion_tokens=1,
                cost=0.0,
                savings=(Saving("cache", 0.125, 30.0),),
                reused=True,
            )
        )
        admission.call("n").close()
    store.close()
    shown = keys("usage", "acme", "--days", "1")
    assert re.search(r"acme +\d{4}-\d\d-\d\d m +2 +1 +130 +0 +46 +0\.25\n", shown)
    assert "0.25 spent, 1.5 min of the engine's time" in shown
    assert "Saved by cache: 0.125, 30.0 s." in shown
    assert "Of 1 requests nobody knows the tokens" in shown
    assert "budgets were charged 0.25 for them" in shown
    rows = json.loads(keys("usage", "--json"))
    assert [(row["model"], row["unknown_usage"]) for row in rows] == [("m", 0), ("n", 1)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Two workers: their URL, that of the admin API, and the tenants' folder."""
    folder = tmp_path_factory.mktemp("keys")
    port = free_port()
    process, url = start(
        *(
            "--model",
            str(write_tiny_model(folder / "tiny", context=8192)),
            "--workers",
            "2",
            "--no-cache",
            "--threads",
            "1",
        ),
        *("--embedding-model", "none", "--tenants-path", str(folder / "tenants"), "--admin-port", str(port)),
    )
    yield url, f"http://127.0.0.1:{port}", folder / "tenants"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def run(folder: Path, action: str, *arguments: str) -> str:
    command = [*PENSTOCK, "keys", action, "--tenants-path", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def ask_at_once(url: str, key: str, times: int, **fields: Any) -> list[tuple[int, dict[str, Any]]]:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 2, "temperature": 1, **fields}

    async def one(session: aiohttp.ClientSession) -> tuple[int, dict[str, Any]]:
        async with session.post(f"{url}/v1/completions", json=body) as reply:
            return reply.status, await reply.json()

    # A connection each, so that both workers have theirs.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Authorization": f"Bearer {key}"}
    ) as session:
        return await asyncio.gather(*(one(session) for _ in range(times)))


def test_limits_are_exact_over_workers_and_hold_at_once(served):
    url, _, folder = served
    key = KEY.search(run(folder, "create", "acme", "--rpm", "30"))[0]
    began = time.monotonic()
    answers = asyncio.run(ask_at_once(url, key, 200))
    refilled = int((time.monotonic() - began) * 30 / 60) + 1
    done = sum(status == 200 for status, _ in answers)
    assert 30 <= done <= 30 + refilled
    assert {status for status, _ in answers} == {200, 429}
    refused = next(body["error"] for status, body in answers if status == 429)
    assert refused["code"] == "rate_limit_exceeded" and "30 requests a minute" in refused["message"]

    run(folder, "set", "acme", "--rpm", "none", "--concurrency", "3")
    answers = asyncio.run(ask_at_once(url, key, 20, max_tokens=100, ignore_eos=True))
    assert sum(status == 200 for status, _ in answers) >= 3
    usage = json.loads(run(folder, "usage", "acme", "--json"))
    done += sum(status == 200 for status, _ in answers)
    assert [(row["model"], row["requests"], row["unknown_usage"]) for row in usage] == [("tiny", done, 0)]

    run(folder, "revoke", "--tenant", "acme")
    assert {status for status, _ in asyncio.run(ask_at_once(url, key, 8))} == {401}


def test_a_killed_workers_places_come_free(served):
    """And the admin API is back when it was the first that ended."""
    url, admin, folder = served
    key = KEY.search(run(folder, "create", "bolt", "--concurrency", "4"))[0]

    async def scene() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        body = {
            "model": "tiny",
            "prompt": "abc",
            "max_tokens": 6000,  # longer than any step of the scene takes
            "ignore_eos": True,
            "stream": True,
            "temperature": 1,
        }
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            streams = [await session.post(f"{url}/v1/completions", json=body) for _ in range(4)]
            assert [reply.status for reply in streams] == [200] * 4
            standing = await session.get(f"{admin}/tenants/bolt")
            holders = holders_of(folder)
            assert (await standing.json())["now"]["running"] == sum(holders.values()) > 0
            for pid in holders:
                os.kill(pid, signal.SIGKILL)
            for reply in streams:
                reply.close()
            deadline = time.monotonic() + 20
            statuses: list[int] = []
            while statuses != [200] * 4:
                assert time.monotonic() < deadline, statuses
                try:
                    replies = await ask_at_once(url, key, 4)
                    statuses = [status for status, _ in replies]
                except aiohttp.ClientError:
                    pass  # the workers are not back yet
                await asyncio.sleep(0.05)
            while True:
                assert time.monotonic() < deadline
                try:
                    async with session.get(f"{admin}/tenants/bolt") as shown:
                        assert (await shown.json())["now"]["running"] == 0
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)

    asyncio.run(scene())
    usage = json.loads(run(folder, "usage", "bolt", "--json"))
    lost = [row for row in usage if row["model"] == "(unknown)"]
    assert [row["unknown_usage"] for row in lost] and lost[0]["requests"] == lost[0]["unknown_usage"]


def holders_of(folder: Path) -> dict[int, int]:
    """Requests that run, by process."""
    store = TenantStore(folder)
    try:
        held = store.counters.standing(store.directory.tenant("bolt")).held
        return {int(process.partition(":")[0]): one.requests for process, one in held.items()}
    finally:
        store.close()
