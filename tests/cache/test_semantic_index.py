"""The semantic index: what it finds, whose it finds, and what several processes and kill -9 leave of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import semantic_worker
from semantic_worker import DIMS, WrittenIndex, make_embedding, make_key, unit

from penstock.cache.environment import CacheEnvironment
from penstock.cache.semantic import SemanticIndex
from penstock.cache.semantic import index as index_file
from penstock.cache.semantic import store as store_file
from penstock.cache.semantic.store import TRAIN_AT
from penstock.errors import ConfigError, PenstockError

P = b"acme/context"


@pytest.fixture
def environment(path):
    with_room = CacheEnvironment(path, max_bytes=1 << 28)
    yield with_room
    with_room.close()


@pytest.fixture
def open_index(environment):
    return lambda **settings: WrittenIndex(environment, **settings)


def add(index: WrittenIndex, numbers: range, partition: bytes = P) -> None:
    for number in numbers:
        index.add(partition, make_key(number), make_embedding(number))
    index.flush()


def found(index: SemanticIndex, number: int, partition: bytes = P) -> bool:
    """Whether an entry is the one nearest to its own embedding."""
    matches = index.search(partition, make_embedding(number))
    return bool(matches) and matches[0].key == make_key(number) and matches[0].similarity > 0.999


def head_of(index: SemanticIndex, partition: bytes = P):
    with index._env.reading() as txn:
        return index._store.head(txn, partition)


def start_worker(
    path: Path, partition: bytes, first: int, count: int, batch: int = 50
) -> subprocess.Popen[str]:
    arguments = [str(path), partition.decode(), str(first), str(count), str(batch)]
    return subprocess.Popen(
        [sys.executable, semantic_worker.__file__, *arguments], stdout=subprocess.PIPE, text=True
    )


def test_matches_are_the_nearest_by_cosine_in_order(open_index):
    index = open_index()
    add(index, range(3000))
    stored = np.stack([make_embedding(number) for number in range(3000)])
    for number in range(0, 3000, 97):
        query = unit(stored[number] + 0.8 * make_embedding(10_000 + number))
        cosines = stored @ query
        matches = index.search(P, query * 5, k=3)
        assert matches[0].key == make_key(int(cosines.argmax()))
        assert [match.similarity for match in matches] == sorted(
            (m.similarity for m in matches), reverse=True
        )
        for match in matches:
            assert abs(match.similarity - cosines[int(match.key[4:])]) < 2e-3


def clusters(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Entries around a tenth as many centres, and queries at cosines of about 0.85 to 0.98 to one of the first 4,000."""
    random = np.random.default_rng(count)
    centres = unit(random.standard_normal((count // 10, DIMS)))
    x = unit(
        0.75 * centres[random.integers(0, len(centres), count)]
        + 0.66 * unit(random.standard_normal((count, DIMS)))
    )
    near = random.uniform(0.85, 0.98, (300, 1))
    noise = unit(random.standard_normal((300, DIMS)))
    return x, unit(near * x[random.integers(0, 4000, 300)] + np.sqrt(1 - near**2) * noise)


def recall(index: SemanticIndex, x: np.ndarray, queries: np.ndarray) -> float:
    nearest = (queries @ x.T).argmax(axis=1)
    answers = [index.search(P, query) for query in queries]
    return float(
        np.mean([bool(a) and a[0].key == make_key(n) for a, n in zip(answers, nearest, strict=True)])
    )


@pytest.mark.parametrize("in_numpy", [False, True])
def test_recall_with_the_radius_before_and_after_training(open_index, monkeypatch, in_numpy):
    monkeypatch.setattr(index_file, "_SMALL", 0)
    if in_numpy:
        monkeypatch.setattr("penstock.cache.semantic.scan.library", lambda: None)
    index = open_index()
    x, queries = clusters(TRAIN_AT + 700)
    for number in range(TRAIN_AT - 1):
        index.add(P, make_key(number), x[number])
    index.flush()
    assert head_of(index).generation == 0
    assert recall(index, x[: TRAIN_AT - 1], queries) >= 0.98
    for number in range(TRAIN_AT - 1, len(x)):
        index.add(P, make_key(number), x[number])
    index.flush()
    assert head_of(index).generation == 1
    assert recall(index, x, queries) >= 0.98


def test_training_changes_no_similarity(open_index, monkeypatch):
    """Codes are rewritten; entries, keys and embeddings stay, and so does what a search says of them."""
    index = open_index()
    x, queries = clusters(TRAIN_AT + 300)
    with monkeypatch.context() as patch:
        patch.setattr(store_file, "TRAIN_AT", 1 << 30)
        for number, embedding in enumerate(x):
            index.add(P, make_key(number), embedding)
        index.flush()
    before = [index.search(P, query)[0] for query in queries]
    head = head_of(index)
    index._store.train(P)
    assert (head_of(index).generation, head_of(index).number) == (1, head.number)
    after = [index.search(P, query)[0] for query in queries]
    assert sum(a == b for a, b in zip(before, after, strict=True)) >= 0.99 * len(queries)
    index._store.train(P)
    assert head_of(index).changes == head.changes + 1, "trained once only"


def test_partitions_never_meet(open_index):
    index = open_index()
    names = [b"", b"a", b"ab", b"a\0", b"b", bytes(1000)]
    for place, partition in enumerate(names):
        add(index, range(40 * place, 40 * place + 40), partition)
    for place, partition in enumerate(names):
        for number in range(0, 40 * len(names), 7):
            matches = index.search(partition, make_embedding(number), k=32)
            assert len(matches) == 32
            assert {int(match.key[4:]) // 40 for match in matches} == {place}
    assert index.search(b"unknown", make_embedding(0), k=32) == []


def test_a_key_of_one_partition_is_not_removed_by_another(open_index):
    index = open_index()
    for partition in (b"a", b"b"):
        add(index, range(10), partition)
    index.remove(b"a", make_key(3))
    index.remove(b"c", make_key(4))
    index.flush()
    assert [found(index, 3, b"a"), found(index, 3, b"b"), found(index, 4, b"a")] == [False, True, True]


def test_what_is_removed_is_not_found_again(open_index):
    index = open_index()
    add(index, range(2500))
    assert found(index, 2400)  # the mirror holds it
    gone = [0, 5, 1023, 1024, 2047, 2400, 2499]
    for number in gone:
        index.remove(P, make_key(number))
    index.remove(P, b"never there")
    index.flush()
    assert not any(found(index, number) for number in gone)
    assert all(found(index, number) for number in (1, 1022, 1025, 2048, 2399, 2498))
    assert head_of(index).dead == len(gone)


def test_a_key_added_again_has_the_new_embedding(open_index):
    index = open_index()
    add(index, range(30))
    index.add(P, make_key(7), make_embedding(999))
    index.flush()
    (match,) = index.search(P, make_embedding(999))
    assert match.key == make_key(7) and match.similarity > 0.999
    assert not found(index, 7)
    index.add(P, make_key(7), make_embedding(1))  # both before the next commit: the last one counts
    index.add(P, make_key(7), make_embedding(7))
    index.remove(P, make_key(8))
    index.add(P, make_key(8), make_embedding(8))
    index.flush()
    assert all(found(index, number) for number in range(30))


@pytest.mark.parametrize("count", [200, 5500])
def test_a_third_dead_is_compacted_and_all_others_stay(open_index, count):
    index = open_index()
    add(index, range(count))
    assert found(index, count - 1)
    before = head_of(index)
    for number in range(0, count, 5):
        index.remove(P, make_key(number))
    index.flush()
    assert head_of(index).number == before.number, "a fifth is not enough"
    for number in range(1, count, 5):
        index.remove(P, make_key(number))
    index.flush()
    after = head_of(index)
    assert (after.count, after.dead, after.generation) == (count - 2 * (count // 5), 0, before.generation)
    step = max(1, count // 200)
    for number in range(0, count, step):
        assert found(index, number) == (number % 5 > 1)
    with index._env.reading() as txn:  # the old number's rows are gone
        for database in (index._store.keys, index._store.slots):
            assert txn.stat(database)["entries"] == after.count
    add(index, range(count, count + 1500))
    assert all(found(index, number) for number in range(count, count + 1500, 50))


def test_an_emptied_partition_leaves_nothing(open_index):
    index = open_index()
    rows = lambda: index._store.rows  # noqa: E731
    with index._env.reading() as txn:
        empty = txn.stat(rows())["entries"]
    add(index, range(1100))
    for number in range(1100):
        index.remove(P, make_key(number))
    index.flush()
    assert index.search(P, make_embedding(1)) == [] and head_of(index) is None
    with index._env.reading() as txn:
        assert txn.stat(rows())["entries"] == empty + 1  # the next number
    add(index, range(5))
    assert found(index, 3)


def test_the_next_search_sees_what_another_process_has_written(open_index, path):
    index = open_index()
    add(index, range(20))
    assert index.search(P, make_embedding(5000))[0].similarity < 0.9
    process = start_worker(path, P, first=5000, count=2300, batch=100)
    seen = 0
    for line in process.stdout:
        if line.strip() == "closed":
            break
        acknowledged = int(line)
        assert found(index, acknowledged - 1) and found(index, acknowledged - 100)
        seen += 1
    assert process.wait() == 0 and seen == 23
    process.stdout.close()
    assert all(found(index, number) for number in [*range(20), *range(5000, 7300, 41)])


def test_removals_compaction_and_training_by_another_process_are_seen(open_index, path):
    index = open_index()
    add(index, range(300))
    assert found(index, 10)
    script = f"""
from pathlib import Path
from semantic_worker import *
environment = CacheEnvironment(Path({str(path)!r}), max_bytes=1 << 28)
index = WrittenIndex(environment)
def step(last):
    index.flush(); print(last, flush=True); input()
index.remove({P!r}, make_key(10)); step("removed")
for n in range(100, 250): index.remove({P!r}, make_key(n))
step("compacted")
for n in range(1000, 5200): index.add({P!r}, make_key(n), make_embedding(n))
step("trained")
environment.close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(semantic_worker.__file__).parent)},
    )

    def wait_for(word: str) -> None:
        assert process.stdout.readline().strip() == word

    number = head_of(index).number
    wait_for("removed")
    assert not found(index, 10) and found(index, 11) and head_of(index).number == number
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for("compacted")
    assert head_of(index).number != number
    assert [found(index, n) for n in (9, 99, 100, 249, 250, 299)] == [True, True, False, False, True, True]
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for("trained")
    assert head_of(index).generation == 1
    assert all(found(index, n) for n in (9, 99, 250, 1000, 3000, 5199))
    process.communicate("\n")
    assert process.returncode == 0


def test_what_flush_acknowledged_survives_kill_9(path):
    acknowledged = 0
    for round_ in range(6):
        process = start_worker(path, P, first=acknowledged, count=100_000, batch=300)
        for _ in range(2 + round_):
            acknowledged = int(process.stdout.readline())
        time.sleep(0.007 * round_ % 0.03)  # at another moment of the batch each time
        process.kill()
        process.stdout.read()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        environment = CacheEnvironment(path, max_bytes=1 << 28)
        index = WrittenIndex(environment)
        assert all(found(index, number) for number in range(0, acknowledged, 37))
        assert found(index, acknowledged - 1)
        head = head_of(index)
        with environment.reading() as txn:
            for database in (index._store.keys, index._store.slots):
                assert txn.stat(database)["entries"] == head.count - head.dead
        environment.close()
    assert acknowledged > TRAIN_AT


def test_entries_are_there_after_reopening(path):
    for round_ in range(3):
        environment = CacheEnvironment(path, max_bytes=1 << 28)
        index = WrittenIndex(environment)
        add(index, range(round_ * 700, round_ * 700 + 700))
        environment.close()
    environment = CacheEnvironment(path, max_bytes=1 << 28)
    index = WrittenIndex(environment)
    assert all(found(index, number) for number in range(0, 2100, 23))
    environment.close()


def test_threads_search_while_others_write(open_index):
    index = open_index()
    add(index, range(100))
    wrong: list[int] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            wrong.extend(number for number in range(0, 100, 9) if not found(index, number))

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for begin in range(100, 3100, 250):
        add(index, range(begin, begin + 250))
        for number in range(begin, begin + 200):
            index.remove(P, make_key(number))
        index.flush()
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert head_of(index).number > 0, "it was compacted meanwhile"


def test_mirrors_stay_under_their_bound(open_index):
    bound = 3 * 1024 * 33
    index = open_index(mirror_bytes=bound)
    names = [b"partition %d" % i for i in range(9)]
    for name in names:
        add(index, range(5), name)
    for _ in range(2):
        for name in names:
            assert found(index, 3, name)
            assert 0 < index._mirrors.num_bytes <= bound
    assert list(index._mirrors._mirrors) == names[-3:]


def test_a_map_that_is_full_grows(path, monkeypatch):
    monkeypatch.setattr("penstock.cache.environment._MIN_MAP", 1 << 20)
    environment = CacheEnvironment(path, max_bytes=1 << 25)
    environment._resize(1 << 20)
    index = WrittenIndex(environment)
    add(index, range(5000))
    assert (path / "data.mdb").stat().st_size > 1 << 20
    assert all(found(index, number) for number in range(0, 5000, 97))
    environment.close()


@pytest.mark.parametrize(
    ("embedding", "says"),
    [
        (np.ones(DIMS - 1), rf"shape \[{DIMS - 1}\]; this index holds vectors of {DIMS} numbers"),
        (np.ones((1, DIMS)), rf"shape \[1, {DIMS}\]"),
        (np.zeros(DIMS), "length is 0.0"),
        (np.full(DIMS, np.nan), "length is nan"),
        (np.full(DIMS, np.inf), "length is inf"),
    ],
)
def test_what_is_no_embedding_is_refused(open_index, embedding, says):
    index = open_index()
    with pytest.raises(PenstockError, match=says):
        index.add(P, b"key", embedding)
    with pytest.raises(PenstockError, match=says):
        index.search(P, embedding)


def test_other_wrong_arguments_are_refused(open_index, environment):
    index = open_index()
    for k in (0, 33):
        with pytest.raises(PenstockError, match=f"k is {k}; a search gives 1 to 32"):
            index.search(P, make_embedding(0), k)
    with pytest.raises(PenstockError, match="Embeddings of 128 numbers are too short"):
        SemanticIndex(environment, 128)
    with pytest.raises(ConfigError, match=f"holds embeddings of {DIMS} numbers, and the embedder makes 384"):
        SemanticIndex(environment, 384)
    assert SemanticIndex(environment).dims == DIMS
