"""Whole prompts beside answers: kept when asked for, in nobody's way, gone when purged, read back of one tenant alone."""

import json
from pathlib import Path

import msgspec
import pytest
from cache_worker import make_completion, make_key
from neighbour_worker import make_question, store
from semantic_worker import DIMS

from penstock.cache import CachedChoice, CachedCompletion, CompletionCache, Question, WholePrompt
from penstock.cache.exchanges import Exchanges, read_exchanges
from penstock.cache.export import export, import_
from penstock.cache.key import namespace_hash, tenant_hash
from penstock.cache.opened import opened_cache
from penstock.cache.operations import backup, purge
from penstock.cache.record import decode_body, decode_prompt, decode_question, encode_body, new_record
from penstock.cache.selection import Selection
from penstock.errors import ConfigError, PenstockError

CAP = 1 << 28
SECRET = "my card ends in 4711"


class OldBody(CachedCompletion, array_like=True):
    """What releases before whole prompts write and read."""

    question: Question | None = None


def make_prompt(number: int = 0, **changes: object) -> WholePrompt:
    messages = [
        {"role": "system", "content": f"Be short. {SECRET}"},
        {"role": "user", "content": f"question {number}"},
    ]
    return WholePrompt("model", **{"messages": messages, **changes})


def text(answer: str, finish_reason: str = "stop") -> CachedChoice:
    return CachedChoice(answer, [1, 2], finish_reason, None, None)


def of_tenant(name: str, **more: object) -> Selection:
    return Selection(tenant=tenant_hash(name), **more)


def read(path: Path, selection: Selection, now: float = 0.0) -> Exchanges:
    with opened_cache(path, max_bytes=CAP) as cache:
        return read_exchanges(cache, selection, now)


def bytes_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


@pytest.mark.parametrize("question", [None, make_question(3)])
def test_old_and_new_readers_understand_each_other(question: Question | None) -> None:
    completion = make_completion(3)
    old = msgspec.msgpack.encode(
        OldBody(completion.choices, completion.prompt_tokens, completion.engine_seconds, question)
    )
    assert encode_body(completion, question) == old, "without a prompt not a byte more"
    assert decode_body(old, new_record(old, b"", 0, None).checksum) == completion
    assert (decode_question(old), decode_prompt(old)) == (question, None)

    new = encode_body(completion, question, make_prompt(3))
    found = msgspec.msgpack.decode(new, type=OldBody)
    assert (found.choices, found.question) == (completion.choices, question)
    assert decode_prompt(new) == make_prompt(3)


def test_who_answers_requests_never_reads_the_prompt() -> None:
    """It may be anything at all."""
    whole = encode_body(make_completion(3), make_question(3), make_prompt(3))
    start = whole.index(b'["model"')
    nonsense = whole[:start] + b"\xff" * (len(whole) - start)
    assert decode_body(nonsense, new_record(nonsense, b"", 0, None).checksum) == make_completion(3)
    assert decode_question(nonsense) == make_question(3)
    assert decode_prompt(nonsense) is None


def test_what_is_not_kept_is_nowhere(path: Path, clock) -> None:
    with CompletionCache(path, clock=clock) as cache:
        cache.open_index(DIMS)
        store(cache, 1)
    assert SECRET.encode() not in bytes_of(path)
    with CompletionCache(path, clock=clock) as cache:
        cache.open_index(DIMS)
        store(cache, 1, prompt=make_prompt(1))
        cache.flush()
        assert cache.lookup(make_key(1)).completion == make_completion(1)
        (neighbour,) = cache.nearest(make_question(1).partition, [1.0] * DIMS)
        assert (neighbour.completion, neighbour.question) == (make_completion(1), make_question(1))
    assert SECRET.encode() in bytes_of(path), "so that the first search could have found it"


def test_an_entry_too_large_with_its_prompt_is_kept_without(path: Path, clock) -> None:
    with CompletionCache(path, clock=clock, max_bytes=1 << 20) as cache:
        for number, length in ((1, 1 << 17), (2, 1 << 16)):
            cache.store(make_key(number), make_completion(number), prompt=WholePrompt("m", text="x" * length))
        cache.flush()
        assert cache.stats().entries == 2 and cache.stats().dropped == 0
    with opened_cache(path, max_bytes=CAP) as cache:
        kept = {entry.completion.prompt_tokens: entry.prompt for entry in cache.entries()}
    assert kept[1] is None and kept[2] is not None and len(kept[2].text) == 1 << 16


def test_an_export_carries_prompts_and_older_ones_are_read(path: Path, clock, tmp_path: Path) -> None:
    prompts = {
        0: None,
        1: make_prompt(1),
        2: WholePrompt("model", text="raw \x00 text"),
        3: make_prompt(3, tools=[{"type": "function"}], begun="<think>\n"),
    }
    with CompletionCache(path, clock=clock) as cache:
        for number, prompt in prompts.items():
            cache.store(make_key(number), make_completion(number), prompt=prompt)
    file, copy = tmp_path / "all.jsonl", tmp_path / "copy.lmdb"
    with opened_cache(path, max_bytes=CAP) as cache:
        export(cache, Selection(), file)
        before = list(cache.entries())
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert sum("prompt" in line for line in lines) == 3, "a line without one is as older releases write it"
    with opened_cache(copy, max_bytes=CAP, create=True) as cache:
        assert import_(cache, file, now=clock.now).stored == 4
        after = list(cache.entries())
    assert [entry.body for entry in after] == [entry.body for entry in before]
    assert {entry.completion.prompt_tokens: entry.prompt for entry in after} == prompts

    header, line = file.read_text().splitlines()[0], next(line for line in lines if "prompt" in line)
    line["prompt"]["messages"] = "no list"
    file.write_text(header + "\n" + json.dumps(line) + "\n")
    with (
        opened_cache(copy, max_bytes=CAP) as cache,
        pytest.raises(PenstockError, match=r"line 2: .*messages"),
    ):
        import_(cache, file, now=clock.now)


def test_a_purge_finds_what_stands_anywhere_in_a_prompt(path: Path, clock, tmp_path: Path) -> None:
    with CompletionCache(path, clock=clock) as cache:
        for number, prompt in enumerate(
            [
                make_prompt(0),
                make_prompt(1, messages=[{"role": "user", "content": "harmless"}]),
                WholePrompt("model", text=SECRET.upper()),
                make_prompt(3, messages=[], tools=[{"function": {"description": SECRET}}]),
            ]
        ):
            cache.store(make_key(number), make_completion(number), prompt=prompt)
    with opened_cache(path, max_bytes=CAP) as cache:
        assert purge(cache, Selection(matching="card ENDS in")).entries == 3
        assert [entry.completion.prompt_tokens for entry in cache.entries()] == [1]
        backup(cache, tmp_path / "clean")
    # In the file itself they lie in free pages until others are written over them, as the page says.
    assert SECRET.encode() not in bytes_of(tmp_path / "clean")
    assert b"harmless" in bytes_of(tmp_path / "clean")


def test_one_tenants_answers_come_out_each_once_and_the_rest_is_counted(path: Path, clock) -> None:
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]
    kept = [
        ([text("good")], make_prompt(1)),
        ([text("good"), text("other")], make_prompt(1)),  # under other parameters, say
        ([text("raw")], WholePrompt("model", text="a text")),
        ([text("and that was it</think>yes")], make_prompt(2, begun="<think>\n")),
        ([text("x"), text("y")], None),
        ([text("cut", "length")], make_prompt(3)),
        ([text(" \n")], make_prompt(4)),
        ([text("call", "tool_calls")], make_prompt(5)),
        ([text("could have called")], make_prompt(6, tools=[{"type": "function"}])),
        ([text("has called")], make_prompt(7, messages=calls)),
    ]
    with CompletionCache(path, clock=clock) as cache:
        for number, (choices, prompt) in enumerate(kept):
            cache.store(make_key(number), CachedCompletion(choices, number, 0.0), prompt=prompt)
        cache.store(make_key(90), CachedCompletion([text("late")], 90, 0.0), prompt=make_prompt(8), ttl=5)
        cache.store(
            make_key(91, "acme", "apart"), CachedCompletion([text("apart")], 91, 0.0), prompt=make_prompt(9)
        )
        cache.store(make_key(1, "bolt"), CachedCompletion([text("bolt's")], 1, 0.0), prompt=make_prompt(1))
    read_back = read(path, of_tenant("acme"), clock.now + 6)
    answers = {
        (exchange.prompt.text or exchange.prompt.messages[-1]["content"], exchange.answer)
        for exchange in read_back.found
    }
    assert answers == {
        ("question 1", "good"),
        ("question 1", "other"),
        ("a text", "raw"),
        ("question 2", "<think>\nand that was it</think>yes"),
        ("question 9", "apart"),
    }
    assert read_back.left_out == {
        "without prompt": 2, "over": 1, "with tools": 3, "cut": 1, "empty": 1, "repeated": 1
    }  # fmt: skip
    apart = of_tenant("acme", namespace=namespace_hash("apart"))
    assert [exchange.answer for exchange in read(path, apart).found] == ["apart"]
    assert [exchange.answer for exchange in read(path, of_tenant("bolt")).found] == ["bolt's"]


def test_a_conversation_comes_out_as_long_as_it_became(path: Path, clock) -> None:
    """Clients send all turns again with each question. What another was told is another conversation."""
    turns = ["hello", "hi", "how are you?", "well", "bye", "bye bye"]
    messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    kept = [(messages[:at], messages[at]["content"]) for at in (1, 3, 5)]
    kept += [(messages[:1], "hi there"), (messages[:3], "badly")]
    with CompletionCache(path, clock=clock) as cache:
        for number, (asked, answer) in enumerate(kept):
            prompt = make_prompt(messages=asked)
            cache.store(make_key(number), CachedCompletion([text(answer)], 0, 0.0), prompt=prompt)
    read_back = read(path, of_tenant("acme"))
    assert sorted((len(exchange.conversation), exchange.answer) for exchange in read_back.found) == [
        (2, "hi there"),
        (4, "badly"),
        (6, "bye bye"),
    ]
    assert read_back.left_out == {"continued": 2}


def test_nobodys_prompts_come_out_unless_somebody_is_named(path: Path, clock) -> None:
    with CompletionCache(path, clock=clock) as cache:
        cache.store(make_key(1), make_completion(1), prompt=make_prompt(1))
    with pytest.raises(ConfigError, match="name a tenant"):
        read(path, Selection())
