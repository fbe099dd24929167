"""The engine behind its socket: real child processes, real kills, real threads."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from penstock.errors import EngineDeadError, InvalidRequestError, ModelLoadError, OverloadedError
from penstock.scheduler import AsyncEngine, Chunk, Engine, EngineConfig, SamplingParams

# Starting an engine takes seconds: they are shared, and each test leaves its engine idle.
on_one_loop = pytest.mark.asyncio(loop_scope="module")
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


def config_of(folder: Path, **settings) -> EngineConfig:
    return EngineConfig(model=str(folder), max_model_len=512, max_num_seqs=16, threads=1, **settings)


@pytest_asyncio.fixture(params=["process", "thread"], scope="module", loop_scope="module")
async def engine(request: pytest.FixtureRequest, tiny_llama: Path) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(config_of(tiny_llama), in_process=request.param == "thread")
    await engine.start()
    yield engine
    await engine.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(tiny_llama: Path) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(config_of(tiny_llama))
    await engine.start()
    yield engine
    await engine.shutdown()


async def collect(engine: AsyncEngine, prompt: list[int], params: SamplingParams) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(prompt, params)]


def tokens_of(chunks: list[Chunk], index: int = 0) -> list[int]:
    return [token for chunk in chunks if chunk.index == index for token in chunk.token_ids]


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


def is_idle(engine: AsyncEngine) -> bool:
    stats = engine.stats
    return (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0)


def child_pid(engine: AsyncEngine) -> int:
    return engine._host.pid


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> Callable[[list[int], SamplingParams], list[int]]:
    """What the synchronous engine gives."""
    sync = Engine(config_of(tiny_llama))

    def run(prompt: list[int], params: SamplingParams) -> list[int]:
        return sync.generate([prompt], params, progress=False)[0].completions[0].token_ids

    return run


@on_one_loop
async def test_streams_what_the_engine_computes(engine: AsyncEngine, expected):
    chunks = await collect(engine, [5, 6, 7], SHORT)
    assert tokens_of(chunks) == expected([5, 6, 7], SHORT)
    assert [chunk.finish_reason for chunk in chunks][-1] == "length"
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])
    assert engine.info.architecture == "LlamaForCausalLM" and engine.info.max_model_len == 512
    assert engine.healthy


@on_one_loop
async def test_many_at_once(engine: AsyncEngine, expected):
    prompts = [[3 + number, 4, 5] * (1 + number % 7) for number in range(40)]
    results = await asyncio.gather(*(collect(engine, prompt, SHORT) for prompt in prompts))
    # In float32 the matmuls of other batch sizes may round otherwise; the tiny model's logits are far apart.
    for prompt, chunks in zip(prompts, results, strict=True):
        assert tokens_of(chunks) == expected(prompt, SHORT)
    await until(lambda: is_idle(engine))


@on_one_loop
async def test_several_completions_come_interleaved(engine: AsyncEngine):
    params = SamplingParams(temperature=1.0, seed=5, n=2, max_tokens=12, ignore_eos=True, logprobs=1)
    chunks = await collect(engine, [5, 6], params)
    for index in (0, 1):
        own = [chunk for chunk in chunks if chunk.index == index]
        assert len(tokens_of(chunks, index)) == 12 and own[-1].finish_reason == "length"
        assert sum(len(chunk.logprobs) for chunk in own) == 12
    assert tokens_of(chunks, 0) != tokens_of(chunks, 1)


@on_one_loop
async def test_a_stop_string_ends_the_sequence_in_the_engine_too(engine: AsyncEngine):
    whole = "".join(chunk.text for chunk in await collect(engine, [5, 6, 7], LONG))
    stop = whole[20:23]
    params = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True, stop=(stop,))
    before = engine.stats.generation_tokens
    chunks = await collect(engine, [5, 6, 7], params)
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)]
    assert (chunks[-1].finish_reason, chunks[-1].stop_reason) == ("stop", stop)
    await until(lambda: is_idle(engine))
    assert engine.stats.generation_tokens - before < 200  # 400 were asked for


@on_one_loop
async def test_refusals_come_before_the_first_chunk_and_whole(engine: AsyncEngine):
    with pytest.raises(InvalidRequestError, match=r"999.*319") as caught:
        await collect(engine, [999], SHORT)
    assert caught.value.param == "prompt"
    many = SamplingParams(n=100, max_tokens=1)
    results = await asyncio.gather(*(collect(engine, [5], many) for _ in range(14)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, OverloadedError)]
    assert refused and all(error.retry_after for error in refused)
    assert any(isinstance(result, list) for result in results)
    await until(lambda: is_idle(engine))


@on_one_loop
async def test_what_cannot_travel_is_refused_and_harms_nobody_else(engine: AsyncEngine, expected):
    other = asyncio.create_task(collect(engine, [5, 6, 7], LONG))
    await until(lambda: engine.stats.num_running == 1)
    for prompt in (["x"], [1.5], [2**70], "text"):
        with pytest.raises(InvalidRequestError, match="list of token ids"):
            await collect(engine, prompt, SHORT)  # type: ignore[arg-type]  # the point
    assert (await other)[-1].finish_reason == "length"
    assert not engine._streams


@on_one_loop
async def test_a_client_that_talks_nonsense_is_cut_off_alone(engine: AsyncEngine):
    other = asyncio.create_task(collect(engine, [5, 6, 7], LONG))
    await until(lambda: engine.stats.num_running == 1)
    reader, writer = await asyncio.open_unix_connection(engine.address)
    writer.write((5).to_bytes(4, "little") + b"\xc1junk")
    async with asyncio.timeout(10):
        await reader.read()  # up to the end
    writer.close()
    assert (await other)[-1].finish_reason == "length"


@on_one_loop
@pytest.mark.parametrize("chunks_before", [0, 1, 5])
async def test_closing_a_stream_ends_its_computing_and_frees_its_blocks(
    engine: AsyncEngine, chunks_before: int
):
    stream = engine.generate(list(range(3, 103)), LONG)
    if chunks_before:
        for _ in range(chunks_before):
            await anext(stream)
        await stream.aclose()
    else:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
    steps = engine.stats.steps
    # Messages travel: a few steps may be under way before the abort arrives; none may follow it.
    await asyncio.sleep(0.2)
    await until(lambda: is_idle(engine))
    settled = engine.stats.steps
    assert settled - steps <= 20  # of 400
    await asyncio.sleep(0.1)
    assert engine.stats.steps == settled


@on_one_loop
async def test_a_thousand_aborts_leave_the_pool_as_it_was(process: AsyncEngine):
    engine = process
    total = engine.stats.kv_blocks_total

    async def leave(number: int) -> None:
        stream = engine.generate([3 + number % 300] * (1 + number % 90), LONG)
        try:
            async with asyncio.timeout(0.0005 * (number % 40)):
                async for _ in stream:
                    pass
        except TimeoutError:
            pass
        finally:
            await stream.aclose()

    for start in range(0, 1000, 50):
        await asyncio.gather(*(leave(start + number) for number in range(50)))
    await until(lambda: is_idle(engine))
    assert engine.stats.kv_blocks_total == total
    assert not engine._streams
    assert len(tokens_of(await collect(engine, [5], SHORT))) == 10


@on_one_loop
async def test_a_reader_that_lags_gets_all_of_it(engine: AsyncEngine, expected):
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, logprobs=1)
    chunks = []
    async for chunk in engine.generate([5, 6, 7], params):
        chunks.append(chunk)
        if len(chunks) == 2:
            await until(lambda: is_idle(engine))  # everything is computed before the next is taken
    assert len(chunks) < 60
    assert tokens_of(chunks) == expected([5, 6, 7], params)
    assert sum(len(chunk.logprobs) for chunk in chunks) == 60
    assert chunks[-1].finish_reason == "length"


@on_one_loop
async def test_a_reader_that_lags_sees_the_same_stop(engine: AsyncEngine):
    whole = await collect(engine, [5, 6, 7], LONG)
    stop = "".join(chunk.text for chunk in whole)[20:23]
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True, stop=(stop,))
    prompt = await collect(engine, [5, 6, 7], params)
    late = []
    async for chunk in engine.generate([5, 6, 7], params):
        late.append(chunk)
        await asyncio.sleep(0.05)
    for view in (tokens_of, lambda chunks: "".join(chunk.text for chunk in chunks)):
        assert view(late) == view(prompt)


@on_one_loop
@pytest.mark.parametrize("in_process", [False, True])
async def test_a_model_that_cannot_load_says_why(tmp_path: Path, in_process: bool):
    engine = AsyncEngine(EngineConfig(model=str(tmp_path)), in_process=in_process)
    with pytest.raises(ModelLoadError, match=tmp_path.name):
        await asyncio.wait_for(engine.start(), 60)
    assert not engine.healthy and not _is_there(engine.address)


@on_one_loop
@pytest.mark.parametrize("in_process", [False, True])
async def test_a_pool_that_is_too_small_says_why(tiny_llama: Path, in_process: bool):
    engine = AsyncEngine(config_of(tiny_llama, kv_cache_tokens=64), in_process=in_process)
    with pytest.raises(ModelLoadError, match=r"64 tokens.*512"):
        await asyncio.wait_for(engine.start(), 60)


@on_one_loop
async def test_shutdown_ends_the_child_and_the_streams(tiny_llama: Path):
    engine = AsyncEngine(config_of(tiny_llama))
    await engine.start()
    pid = child_pid(engine)
    task = asyncio.ensure_future(collect(engine, [5], LONG))
    await until(lambda: engine.stats.generation_tokens > 2)
    await engine.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        await task
    assert not _exists(pid) and not _is_there(engine.address)
    with pytest.raises(EngineDeadError):
        await collect(engine, [5], SHORT)


@on_one_loop
async def test_other_clients_share_the_engine_and_take_their_requests_with_them(
    process: AsyncEngine, tiny_llama: Path
):
    second = AsyncEngine.connect(process.address)
    await second.start()
    assert second.info == process.info
    both = await asyncio.gather(collect(process, [5, 6], SHORT), collect(second, [5, 6], SHORT))
    assert tokens_of(both[0]) == tokens_of(both[1])
    await second.shutdown()
    assert process.healthy and len(await collect(process, [5], SHORT)) > 0

    script = f"""
        import asyncio
        from penstock.scheduler import AsyncEngine, SamplingParams
        async def main():
            engine = AsyncEngine.connect({process.address!r})
            await engine.start()
            async for chunk in engine.generate([5, 6], SamplingParams(max_tokens=400, ignore_eos=True)):
                print("got", flush=True)
                await asyncio.sleep(100)
        asyncio.run(main())
    """
    client = _spawn(script)
    try:
        assert client.stdout is not None
        assert await asyncio.to_thread(client.stdout.readline) == "got\n"
        mine = asyncio.ensure_future(collect(process, [7], LONG))
        await until(lambda: process.stats.num_running >= 1)
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    assert len(tokens_of(await mine)) == 400
    await until(lambda: is_idle(process))


def test_the_child_ends_when_its_owner_is_killed(tiny_llama: Path):
    script = f"""
        import asyncio
        from penstock.scheduler import AsyncEngine, EngineConfig, SamplingParams
        async def main():
            engine = AsyncEngine(EngineConfig(model={str(tiny_llama)!r}, max_model_len=512, threads=1))
            await engine.start()
            print(engine._host.pid, engine.address, flush=True)
            async for chunk in engine.generate([5], SamplingParams(max_tokens=500, ignore_eos=True)):
                await asyncio.sleep(100)
        asyncio.run(main())
    """
    owner = _spawn(script)
    assert owner.stdout is not None
    number, address = owner.stdout.readline().split()
    pid, folder = int(number), Path(address).parent
    assert _exists(pid) and folder.exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while _exists(pid):
        assert time.monotonic() < deadline, "the engine outlived its owner"
        time.sleep(0.02)
    assert not folder.exists(), "the engine is the one who can tidy up"


def test_importing_the_async_engine_loads_no_torch():
    code = "import sys, penstock.scheduler; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


async def test_no_folder_is_left_behind(tiny_llama: Path):
    never_started = AsyncEngine(config_of(tiny_llama))
    folder = Path(never_started.address).parent
    assert folder.is_dir()
    del never_started
    gc.collect()
    assert not folder.exists()


async def test_before_and_after_its_life_an_engine_says_so(tiny_llama: Path):
    engine = AsyncEngine(config_of(tiny_llama), in_process=True)
    with pytest.raises(EngineDeadError, match="not started"):
        await collect(engine, [5], SHORT)
    await engine.start()
    await engine.shutdown()
    assert not engine.healthy
    with pytest.raises(EngineDeadError, match="shut down"):
        await collect(engine, [5], SHORT)


def _is_there(path: str) -> bool:
    return Path(path).exists()


def _spawn(script: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )


def _exists(pid: int) -> bool:
    """Alive, and not merely a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
