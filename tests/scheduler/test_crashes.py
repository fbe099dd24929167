"""An accepted stream always finishes: engines are killed under live streams, which go on as if nothing had happened."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from penstock.errors import OverloadedError, PenstockError
from penstock.scheduler import AsyncEngine, Chunk, EngineConfig, SamplingParams
from penstock.scheduler.model_runner import ModelRunner
from penstock.scheduler.step_record import StepRecord, last_step
from penstock.scheduler.urgency import Urgency

on_one_loop = pytest.mark.asyncio(loop_scope="module")
STREAMS = 24
KILLS = 3


def config_of(folder: Path, **settings) -> EngineConfig:
    return EngineConfig(
        model=str(folder), quantize="w8a8", max_model_len=512, max_num_seqs=16, threads=1, **settings
    )


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
        await asyncio.sleep(0.005)


def kill(engine: AsyncEngine) -> None:
    os.kill(engine._host.pid, signal.SIGKILL)


Answer = dict[int, tuple[list[int], str, list[object], str | None, object]]


async def answer(engine: AsyncEngine, prompt: list[int], params: SamplingParams, **kwargs) -> Answer:
    """Everything that a client can see of each completion but how it was cut into chunks."""
    found: dict[int, list[Chunk]] = {index: [] for index in range(params.n)}
    async for chunk in engine.generate(prompt, params, **kwargs):
        found[chunk.index].append(chunk)
    return {
        index: (
            [token for chunk in chunks for token in chunk.token_ids],
            "".join(chunk.text for chunk in chunks),
            [logprob for chunk in chunks for logprob in chunk.logprobs or []],
            chunks[-1].finish_reason,
            chunks[-1].stop_reason,
        )
        for index, chunks in found.items()
    }


def requests(rng: random.Random) -> list[tuple[list[int], SamplingParams]]:
    return [
        (
            [rng.randrange(5, 300) for _ in range(rng.choice([1, 20, 64, 130]))],
            SamplingParams(
                n=rng.choice([1, 1, 2]),
                temperature=rng.choice([0.0, 0.8]),
                seed=rng.randrange(2**63),
                max_tokens=rng.randrange(30, 250),
                ignore_eos=True,
                stop=rng.choice([(), ("qu",)]),
                logprobs=rng.choice([None, 1]),
                repetition_penalty=rng.choice([1.0, 1.1]),
                drafters=rng.choice([None, ("ngram",)]),
            ),
        )
        for _ in range(STREAMS)
    ]


@on_one_loop
async def test_kills_under_live_streams_change_nothing(engine: AsyncEngine):
    rng = random.Random(3)
    asked = requests(rng)
    undisturbed = await asyncio.gather(*(answer(engine, *request) for request in asked))
    streams = [asyncio.ensure_future(answer(engine, *request)) for request in asked]
    for _ in range(KILLS):
        await until(lambda: engine.healthy and engine.stats.generation_tokens > 50)
        await asyncio.sleep(rng.random() * 0.1)
        assert not all(stream.done() for stream in streams), "the kill came too late to matter"
        kill(engine)
        await until(lambda: not engine.healthy)
    assert await asyncio.gather(*streams) == undisturbed
    await until(lambda: engine.stats.kv_blocks_used == 0)
    assert not engine._streams


@on_one_loop
async def test_who_comes_while_the_engine_is_away_is_served_when_it_is_back(engine: AsyncEngine):
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    expected = await answer(engine, [5, 6, 7], params)
    kill(engine)
    await until(lambda: not engine.healthy)
    late = asyncio.ensure_future(answer(engine, [5, 6, 7], params))
    gone = asyncio.ensure_future(answer(engine, [5, 6, 7], params))
    hasty = asyncio.ensure_future(answer(engine, [5], params, urgency=Urgency(deadline=1e-4)))
    await asyncio.sleep(0)
    gone.cancel()
    assert await late == expected
    # It never reached an engine, so the new one judges it as it came.
    with pytest.raises(OverloadedError, match="deadline"):
        await hasty


@on_one_loop
async def test_a_deadline_that_passed_meanwhile_is_told(engine: AsyncEngine):
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    await until(lambda: engine.healthy)
    stream = asyncio.ensure_future(answer(engine, [5], params, urgency=Urgency(deadline=0.6)))
    await until(lambda: engine.stats.num_running > 0 or stream.done())
    kill(engine)
    with pytest.raises(OverloadedError, match=r"deadline of 0\.6 s passed while the engine"):
        await stream


@on_one_loop
async def test_without_a_seed_the_same_tokens_are_drawn_again(engine: AsyncEngine):
    """What was sent before the kill and what comes after belong to one draw: the log-probability of each token, given
    all before it, is that which the model gives now."""
    params = SamplingParams(temperature=1.0, max_tokens=300, ignore_eos=True, logprobs=0)
    await until(lambda: engine.healthy)
    stream = asyncio.ensure_future(answer(engine, [5, 6], params))
    await until(lambda: engine.stats.generation_tokens > 20)
    kill(engine)
    tokens, _, logprobs, _, _ = (await stream)[0]
    assert len(tokens) == len(logprobs) == 300
    forced = SamplingParams(
        temperature=0, max_tokens=1, logprobs=0, ignore_eos=True, logit_bias={tokens[200]: 100}
    )
    again = (await answer(engine, [5, 6, *tokens[:200]], forced))[0]
    assert again[0] == [tokens[200]] and again[2] == [logprobs[200]]


POISON = [13, 13, 13]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt ends whatever engine computes it; engines in threads of this process can be made to."""
    execute = ModelRunner.execute

    def fragile(self, output, *before):
        if any(item.seq.token_ids[:3] == POISON for item in output.scheduled):
            raise RuntimeError("this request ends engines")
        return execute(self, output, *before)

    monkeypatch.setattr(ModelRunner, "execute", fragile)


async def test_a_request_that_ends_engines_is_given_up_alone(tiny_llama: Path, poisoned: None):
    engine = AsyncEngine(config_of(tiny_llama), in_process=True)
    await engine.start()
    try:
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        prompts = [[20 + number, 6, 7] for number in range(6)]
        expected = [await answer(engine, prompt, params) for prompt in prompts]
        streams = [asyncio.ensure_future(answer(engine, prompt, params)) for prompt in prompts]
        bad = asyncio.ensure_future(answer(engine, POISON, params))
        with pytest.raises(PenstockError, match="ended the engine 3 times"):
            await bad
        assert await asyncio.gather(*streams) == expected
        assert await answer(engine, prompts[0], params) == expected[0]
    finally:
        await engine.shutdown()


async def test_two_that_end_engines_are_told_apart_from_the_rest(tiny_llama: Path, poisoned: None):
    engine = AsyncEngine(config_of(tiny_llama), in_process=True)
    await engine.start()
    try:
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        good = [asyncio.ensure_future(answer(engine, [20 + number, 6], params)) for number in range(4)]
        bad = []
        for number in range(5, 7):
            # The second comes while the first has left the good ones under suspicion, too.
            bad.append(asyncio.ensure_future(answer(engine, [*POISON, number], params)))
            await until(
                lambda: bool(engine._streams) and max(s.strikes for s in engine._streams.values()) > 1
            )
        found = await asyncio.gather(*bad, return_exceptions=True)
        assert all(isinstance(error, PenstockError) and "is given up" in error.message for error in found)
        assert all(len(one[0][0]) == 40 for one in await asyncio.gather(*good))
    finally:
        await engine.shutdown()


def test_the_last_step_outlives_whoever_recorded_it(tmp_path: Path):
    address = str(tmp_path / "engine.sock")
    assert last_step(address) == frozenset()
    record = StepRecord(address)
    record.write(["a-1", "a-2", "b-7"])
    assert last_step(address) == {"a-1", "a-2", "b-7"}
    record.write(["c"])
    assert last_step(address) == {"c"}
    record.close()
