"""`cache_prompts` over HTTP: nothing unless it is on, and then one tenant's prompts, as data to compress models with."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from fake_upstream import fake_upstream
from running_gateway import chat, running_gateway, settings_of
from running_server import RunningServer, running_server

from penstock.cache.opened import opened_cache
from penstock.cli import main
from penstock.compress.texts import read_examples, tokenize
from penstock.models.tokenizer import Tokenizer
from penstock.proxy.controls import tenant_of
from penstock.proxy.reload import apply
from penstock.proxy.tenants.tenant import Tenant
from penstock.proxy.whole_prompt import whole_prompt

CHAT, TEXT, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
ALICE, BOB = "key-of-alice", "key-of-bob"
# The random model's answers are words, and end by themselves.
SPEAKS = {"model": "tiny", "temperature": 0, "guided_regex": "(yes|no), [a-e]{4}"}
SECRET = "alice keeps her key under the mat"


def asks(*contents: str) -> list[dict[str, Any]]:
    """Turns of a user and an assistant."""
    return [
        {"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)
    ]


async def post(server: RunningServer, key: str, path: str = CHAT, **fields: Any) -> str:
    """The answer's text."""
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(server.url + path, json={**SPEAKS, **fields}) as reply,
    ):
        content = await reply.json()
        assert reply.status == 200, content
        (choice,) = content["choices"]
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        assert choice["finish_reason"] == "stop"
        return str(text)


async def bytes_in(server: RunningServer) -> bytes:
    assert server.cache is not None and server.settings.cache_path is not None
    await asyncio.to_thread(server.cache.flush)
    return b"".join(file.read_bytes() for file in server.settings.cache_path.iterdir())


def examples(path: Path, tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `penstock cache examples` writes. (Beside a server: tests/cli/test_cli_cache.py.)"""
    file = tmp_path / "examples.jsonl"
    file.unlink(missing_ok=True)
    assert main(["cache", "examples", str(file), "--cache-path", str(path), *arguments]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_examples(file), "every command that compresses reads it"
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_nothing_is_kept_of_prompts_by_default(
    engine_address: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "completions"
    async with running_server(engine_address, model, cache_path=path) as server:
        answer = await post(server, ALICE, messages=asks(SECRET))
        await post(server, ALICE, TEXT, prompt=SECRET)
        found = await bytes_in(server)
        assert SECRET.encode() not in found and answer.encode() in found
    assert main(["cache", "examples", str(tmp_path / "x"), "--cache-path", str(path), "--api-key", ALICE])
    says = capsys.readouterr().err
    assert "the 2 answers of the tenant of that API key" in says and "2 without prompt" in says
    assert "Serve with cache_prompts = true" in says and ALICE not in says
    assert not (tmp_path / "x").exists()


async def test_only_the_named_tenants_prompts_come_out(
    engine_address: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "completions"
    async with running_server(
        engine_address, model, cache_path=path, cache_prompts=True, api_keys=(ALICE, BOB)
    ) as server:
        system = {
            "role": "developer",
            "content": [{"type": "text", "text": text} for text in ("Be", "brief.")],
        }
        chats = {
            "first": await post(server, ALICE, messages=[system, *asks("Hello?", "Yes?", SECRET)]),
            "raw": await post(server, ALICE, TEXT, prompt="Once upon a time"),
            "bob's": await post(server, BOB, messages=asks("bob's question")),
        }
        await post(server, ALICE, messages=[system, *asks("Hello?", "Yes?", SECRET)], user="again: a hit")
        assert SECRET.encode() in await bytes_in(server)
    alices = examples(path, tmp_path, "--api-key", ALICE)
    assert "2 examples of the tenant of that API key from the cache." in capsys.readouterr().out
    told = [
        {"role": "system", "content": "Be\nbrief."},
        *asks("Hello?", "Yes?", SECRET, chats["first"]),
    ]
    assert {"messages": told} in alices
    assert {"prompt": "Once upon a time", "completion": chats["raw"]} in alices
    assert len(alices) == 2
    assert examples(path, tmp_path, "--api-key", BOB) == [
        {"messages": asks("bob's question", chats["bob's"])}
    ]
    both = examples(path, tmp_path, "--api-key", ALICE, "--tenant", tenant_of(BOB))
    assert len(both) == 3, "all of those who are named"
    capsys.readouterr()
    for whose, says in (
        ([], "holds nothing of tenant 'default'; `penstock cache stats` shows"),
        (["--tenant", "carol"], "holds nothing of tenant 'carol'"),
        (["--api-key", BOB, "--namespace", "x"], "that API key in the namespace 'x'"),
        (["--api-key", BOB, "--tenant", "carol"], "holds nothing of tenant 'carol'"),
    ):
        assert main(["cache", "examples", str(tmp_path / "x"), "--cache-path", str(path), *whose]) == 1
        assert says in capsys.readouterr().err
    # The prompt is what the model read, and so what one that learns from it reads.
    tokenizer = Tokenizer.load(str(model))
    (tokens,) = tokenize(tokenizer, read_examples(tmp_path / "examples.jsonl")[:1], 500)
    assert tokens.learn.count(True) > 1
    purge = ["cache", "purge", "--cache-path", str(path), "--api-key", ALICE]
    assert main(purge) == 0
    assert main(["cache", "examples", str(tmp_path / "x"), "--cache-path", str(path), "--api-key", ALICE])
    assert "holds nothing of the tenant of that API key" in capsys.readouterr().err


async def test_what_a_pattern_matches_anywhere_in_a_prompt_keeps_it_out(
    engine_address: str, model: Path, tmp_path: Path
) -> None:
    """The answer alone may stay, as without prompts: of a conversation, patterns are about its question."""
    path = tmp_path / "completions"
    async with running_server(
        engine_address, model, cache_path=path, cache_prompts=True, cache_no_store_patterns=("under the mat",)
    ) as server:
        answer = await post(server, "", messages=asks(SECRET, "I see.", "And now?"))
        await post(server, "", messages=asks(SECRET))
        await post(server, "", TEXT, prompt=SECRET)
        await post(server, "", messages=asks("harmless"))
        assert server.cache is not None and answer.encode() in await bytes_in(server)
        assert SECRET.encode() not in await bytes_in(server)
        assert server.cache.stats().entries == 2
    (kept,) = examples(path, tmp_path)
    assert kept["messages"][0] == {"role": "user", "content": "harmless"}


async def test_a_tenant_may_be_left_out(engine_address: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "completions"
    async with running_server(
        engine_address, model, cache_path=path, cache_prompts=True, tenants_path=tmp_path / "tenants"
    ) as server:
        assert server.store is not None
        directory = server.store.directory
        keys = {}
        for tenant in (Tenant(name="quiet", prompts=False), Tenant(name="open")):
            directory.put_tenant(tenant)
            keys[tenant.name] = directory.create_key(tenant.name).text
        for name, key in keys.items():
            await post(server, key, messages=asks(f"{name}: {SECRET}"))
        found = await bytes_in(server)
        assert f"open: {SECRET}".encode() in found and f"quiet: {SECRET}".encode() not in found
    assert len(examples(path, tmp_path, "--tenant", "open")) == 1


async def test_it_is_switched_while_serving(engine_address: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "completions"
    async with running_server(engine_address, model, cache_path=path) as server:
        for number, on in enumerate((False, True, False)):
            apply(server.http.context, msgspec.structs.replace(server.settings, cache_prompts=on))
            await post(server, "", messages=asks(f"question {number}"))
            await post(server, "", messages=asks("question 0"))  # a hit: what is kept stays as it is
        await bytes_in(server)
    (kept,) = examples(path, tmp_path)
    assert kept["messages"][0]["content"] == "question 1"


def prompts_in(path: Path) -> list[Mapping[str, Any] | None]:
    with opened_cache(path, max_bytes=1 << 28) as cache:
        return [
            None if entry.prompt is None else msgspec.structs.asdict(entry.prompt)
            for entry in cache.entries()
        ]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ["one", "two"]},
        {"prompt": [1, 2]},
        {"prompt": "x", "echo": True},
        {"prompt": "x", "suffix": "y"},
        {"messages": ["what is this?"]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": 7},
        {},
    ],
)
def test_what_is_no_text_or_conversation_is_not_kept(fields: dict[str, Any]) -> None:
    assert whole_prompt(fields, "m") is None


async def test_answers_of_upstreams_are_kept_with_what_they_were_asked(tmp_path: Path) -> None:
    path, tools = tmp_path / "cache", [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "look"}, {"type": "text", "text": "here"}]
    async with (
        fake_upstream() as upstream,
        running_gateway({"up": settings_of(upstream.url)}, cache_path=path, cache_prompts=True) as gateway,
    ):
        for fields, where in (
            (chat(messages=[{"role": "user", "content": parts}]), CHAT),
            (chat(messages=asks("streamed"), stream=True), CHAT),
            (chat(messages=asks("with tools"), tools=tools), CHAT),
            (chat(messages=[{"role": "user", "content": [*parts, image]}]), CHAT),
            (chat(messages=asks("by another API"), system="Be brief.", max_tokens=9), MESSAGES),
        ):
            reply = await gateway.post(fields, where)
            assert (reply.status, reply.headers["x-penstock-cache"]) == (200, "miss")
        assert gateway.kept == 5
    blank = {"model": "up/m", "text": "", "tools": None, "begun": ""}
    kept = prompts_in(path)
    for expected in (
        {**blank, "messages": asks("look\nhere")},
        {**blank, "messages": asks("streamed")},
        {**blank, "messages": asks("with tools"), "tools": tools},
        {**blank, "messages": [{"role": "system", "content": "Be brief."}, *asks("by another API")]},
        None,  # an image is no text, and half a prompt none
    ):
        kept.remove(expected)
    assert kept == []
    found = examples(path, tmp_path, "--api-key", "sk-of-the-client")
    assert sorted(len(example["messages"]) for example in found) == [2, 2, 3]
    assert all(example["messages"][-1] == {"role": "assistant", "content": "hello"} for example in found)
