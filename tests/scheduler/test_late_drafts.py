"""A draft that comes after its request: whenever it comes, and whatever it holds, only the number of steps depends on it."""

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from penstock.errors import InvalidRequestError
from penstock.scheduler import AsyncEngine, Engine, EngineConfig, SamplingParams
from penstock.scheduler.async_engine import SUSPECT
from penstock.scheduler.draft_length import LENGTHS, draft_length
from penstock.scheduler.grammar import Grammar
from penstock.scheduler.model_runner import ModelRunner
from penstock.scheduler.outputs import TokenLogprob

on_one_loop = pytest.mark.asyncio(loop_scope="module")
PROMPT = [(7 * i) % 300 + 5 for i in range(40)]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, drafters=(), logprobs=1)
SAMPLED = msgspec.structs.replace(GREEDY, temperature=0.9, seed=5, n=2, drafters=("ngram",))
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, drafters=())

Answers = dict[int, tuple[list[int], list[TokenLogprob]]]
Draft = Awaitable[list[int] | None] | None


def config_of(folder: Path, **settings) -> EngineConfig:
    return EngineConfig(model=str(folder), quantize="w8a8", max_model_len=512, threads=1, **settings)


@pytest.fixture(scope="module")
def sync(tiny_llama: Path) -> Engine:
    # Drafts that a caller gives are verified even so.
    return Engine(config_of(tiny_llama, kv_cache_tokens=2048, speculation="off"))


def run(engine: Engine, params: SamplingParams, suggestions: dict[int, list[int]] | None = None) -> Answers:
    """`suggestions`: by the number of steps before them."""
    engine.add_request("one", PROMPT, params)
    found: Answers = {index: ([], []) for index in range(params.n)}
    steps = 0
    while engine.has_work():
        if suggestions and steps in suggestions:
            engine.suggest("one", suggestions[steps])
        for delta in engine.step():
            tokens, logprobs = found[delta.index]
            tokens += delta.token_ids
            logprobs += delta.logprobs or []
        engine.check()
        steps += 1
    return found


def drafts_of(answer: list[int], rng: random.Random) -> dict[str, list[int]]:
    middle, noise = len(answer) // 2, [rng.randrange(5, 300) for _ in answer]
    return {
        "right": answer,
        "right at first": answer[:middle] + noise[middle:],
        "right at last": noise[:middle] + answer[middle:],
        "shifted": answer[3:],
        "useless": noise,
        "empty": [],
    }


@pytest.fixture
def any_length(sync: Engine) -> Iterator[None]:
    """Drafts of any length at any time, whatever they cost."""
    rng = random.Random(2)
    sync.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(
        limit, rng.choice([0, 1, 2, 5, *LENGTHS])
    )
    yield
    sync.speculator.choose_length = draft_length


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_whenever_it_comes_the_answer_is_the_same(sync: Engine, any_length: None, params: SamplingParams):
    alone, rng = run(sync, params), random.Random(1)
    for name, draft in drafts_of(alone[params.n - 1][0], rng).items():
        for steps in (0, 1, 2, 15, 39, 40):
            assert run(sync, params, {steps: draft}) == alone, (name, steps)
        # A second one is heard instead.
        assert run(sync, params, {1: draft, 9: alone[0][0]}) == alone, name
    figures = sync.stats.drafters["draft"]
    assert 0 < figures.accepted < figures.drafted
    assert sync.stats.kv_blocks_used == 0


def test_who_is_no_longer_there_is_not_missed(sync: Engine):
    sync.suggest("nobody", [5, 6])
    run(sync, GREEDY)
    sync.suggest("one", [5, 6])
    assert not sync.has_work() and not sync.is_live("one")
    sync.add_request("left", PROMPT, GREEDY)
    sync.step()
    sync.abort("left")
    sync.suggest("left", [5, 6])
    assert not sync.has_work()


def test_it_is_checked_like_one_that_comes_with_its_request(sync: Engine):
    sync.add_request("one", PROMPT, GREEDY)
    for wrong in ([999_999], [5, -1]):
        with pytest.raises(InvalidRequestError, match="draft_token_ids holds token id"):
            sync.suggest("one", wrong)
    for wrong in ("text", [1.5], [2**70]):
        with pytest.raises(InvalidRequestError, match="draft_token_ids must be a list of token ids"):
            sync.suggest("one", wrong)  # type: ignore[arg-type]  # the point
    assert sync.is_live("one")
    sync.abort("one")


@pytest.mark.parametrize("drafters", [(), ("ngram",)])
@pytest.mark.parametrize("before", [1, 12])
def test_the_rest_comes_in_a_few_steps(sync: Engine, before: int, drafters: tuple[str, ...]):
    params = msgspec.structs.replace(GREEDY, drafters=())
    alone = run(sync, params)
    answer = alone[0][0]
    # Two tokens for one: what follows is found again by the last tokens of the output.
    longer = [*answer[:4], 7, 8, *answer[5:]]
    sync.speculator.choose_length = lambda times, acceptance, limit, tokens, seqs: min(limit, 16)
    try:
        for draft in (answer, longer):
            sync.speculator.stats.clear()
            steps = sync.stats.steps
            assert run(sync, msgspec.structs.replace(params, drafters=drafters), {before: draft}) == alone
            taken, figures = sync.stats.steps - steps, sync.stats.drafters["draft"]
            # Of the tiny model's answers some is a repetition; until the draft comes, n-grams know it.
            assert taken <= before + 8
            assert figures.accepted >= (20 if drafters else 40 - taken)
    finally:
        sync.speculator.choose_length = draft_length


def test_what_a_grammar_forces_goes_before_it(sync: Engine):
    params = msgspec.structs.replace(
        SAMPLED,
        n=1,
        drafters=("grammar", "ngram"),
        grammar=Grammar("regex", "[a-z]{6}, of some length, [a-z]{9}"),
    )
    alone = run(sync, msgspec.structs.replace(params, drafters=()))
    for steps in (0, 1, 4):  # at first the grammar is being compiled
        assert run(sync, params, {steps: alone[0][0], steps + 1: alone[0][0][2:]}) == alone
    sync.add_request("one", PROMPT, params)
    sync.suggest("one", [5])
    while not (sync.step()):
        pass
    sync.suggest("one", [6])
    (seq,) = sync.scheduler.running
    assert [guesser.name for guesser in seq.speculation.guessers] == ["grammar", "draft", "ngram"]
    sync.abort("one")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_llama: Path) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(config_of(tiny_llama))
    await engine.start()
    yield engine
    await engine.shutdown()


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0)


async def answer_of(engine: AsyncEngine, draft: Draft = None, params: SamplingParams = LONG) -> list[int]:
    stream = engine.generate(PROMPT, params, draft_token_ids=draft)
    return [token for chunk in [chunk async for chunk in stream] for token in chunk.token_ids]


def accepted(engine: AsyncEngine) -> int:
    figures = engine.stats.drafters.get("draft")
    return 0 if figures is None else figures.accepted


@on_one_loop
async def test_nothing_waits_for_what_is_to_come(engine: AsyncEngine):
    answer = await answer_of(engine)
    coming: asyncio.Future[list[int] | None] = asyncio.get_running_loop().create_future()
    steps, stream = engine.stats.steps, engine.generate(PROMPT, LONG, draft_token_ids=coming)
    tokens = (await anext(stream)).token_ids
    assert not coming.done()
    coming.set_result(answer)
    async for chunk in stream:
        tokens += chunk.token_ids
    assert tokens == answer and accepted(engine) > 20
    assert engine.stats.steps - steps < 380


@on_one_loop
@pytest.mark.parametrize("outcome", ["None", "failure", "nonsense", "no token of this model", "cancelled"])
async def test_what_does_not_come_is_no_draft(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, outcome: str
):
    async def search() -> list[int] | None:
        await asyncio.sleep(0.002)
        if outcome == "None":
            return None
        if outcome == "failure":
            raise RuntimeError("the index is gone")
        if outcome == "cancelled":
            raise asyncio.CancelledError
        return ["x"] if outcome == "nonsense" else [999_999]  # type: ignore[list-item]  # the point

    before = accepted(engine)
    with caplog.at_level(logging.WARNING):
        answer = await answer_of(engine, search())
    assert answer == await answer_of(engine) and accepted(engine) == before
    warned = [record for record in caplog.records if "goes on without the draft" in record.message]
    assert len(warned) == (0 if outcome in ("None", "cancelled") else 1)


@on_one_loop
@pytest.mark.parametrize("ends", ["by its last token", "early"])
async def test_the_search_ends_with_the_stream(engine: AsyncEngine, ends: str):
    ended = asyncio.Event()

    async def search() -> list[int] | None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return None

    stream = engine.generate(PROMPT, LONG, draft_token_ids=search())
    await anext(stream)
    if ends == "early":
        await stream.aclose()
    else:
        async for _ in stream:
            assert not ended.is_set()
    await asyncio.wait_for(ended.wait(), 1)


class Gate:
    """Lets steps of engines in this process pass while it is open; `fatal`: the step that comes to it ends its engine."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.fatal = False

    def end_engine(self) -> None:
        self.fatal = True
        self.open.set()

    def passed(self) -> None:
        assert self.open.wait(30)
        if self.fatal:
            self.fatal = False
            self.open.clear()
            raise RuntimeError("this step ends its engine")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate, execute = Gate(), ModelRunner.execute

    def gated(self, output, *before):
        gate.passed()
        return execute(self, output, *before)

    monkeypatch.setattr(ModelRunner, "execute", gated)
    return gate


@pytest.mark.parametrize("comes", ["before the engine ends", "while it is away", "while its stream is held"])
async def test_a_draft_outlives_its_engine(tiny_llama: Path, gate: Gate, comes: str):
    """The next engine counts from nothing: what it has accepted, it was told."""
    engine = AsyncEngine(config_of(tiny_llama), in_process=True)
    await engine.start()
    try:
        answer = await answer_of(engine)
        coming: asyncio.Future[list[int] | None] = asyncio.get_running_loop().create_future()
        streams = [asyncio.ensure_future(answer_of(engine, draft)) for draft in (None, coming)]
        await until(lambda: len(engine._streams) == 2)
        other, late = engine._streams.values()
        await until(lambda: bool(late._received[0]))
        gate.open.clear()
        await asyncio.sleep(0.05)  # what was computed has arrived
        if comes == "before the engine ends":
            coming.set_result(answer)
            await until(lambda: late.request.draft_token_ids is not None)
        if comes == "while its stream is held":
            other.strikes = SUSPECT - 1  # computed alone after another one
        gate.end_engine()
        await until(lambda: not engine.healthy)
        if comes == "while it is away":
            coming.set_result(answer)
        if comes == "while its stream is held":
            await until(lambda: engine._on_probation is other)
            coming.set_result(answer)
            await until(lambda: late.request.draft_token_ids is not None)
            assert late in engine._held
        gate.open.set()
        assert await asyncio.gather(*streams) == [answer, answer]
        assert accepted(engine) > 20
    finally:
        gate.open.set()
        await engine.shutdown()
