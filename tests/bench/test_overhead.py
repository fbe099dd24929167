"""The bench of proxies: its upstream sends chunk by chunk, its client counts what came, CPU is the processes' own."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from overhead.cpu_time import CpuTime
from overhead.report import Samples, markdown

FOLDER = Path(__file__).parents[2] / "bench" / "overhead"


@pytest.fixture
def upstream() -> Iterator[int]:
    """The port of a running one."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(FOLDER / "mock_upstream.py"), str(port)])
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as tried:
            if not tried.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.02)
    yield port
    process.kill()
    process.wait()


def pushed(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/pushed") as answer:
        return int(answer.read())


def test_every_chunk_waits_for_the_one_before(upstream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from client import Target, run_load

    seen = run_load(Target(port=upstream, acknowledge=upstream), connections=3, seconds=0.1, chunks=5)
    assert seen.answered >= 3 and len(seen.first) == seen.answered
    assert max(seen.first) < seen.seconds
    assert pushed(upstream) == 0
    # Where nobody acknowledges, each of the 5 chunks and the end has to be pushed, but the first.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        nobody = Target(port=upstream, acknowledge=deaf.getsockname()[1])
        assert run_load(nobody, connections=1, seconds=0.01, chunks=2).answered == 1
    assert pushed(upstream) == 2


def test_an_answer_in_one_piece_is_counted_once(upstream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from client import LoadFailed, Target, run_load

    seen = run_load(Target(port=upstream, acknowledge=upstream), connections=2, seconds=0.05)
    assert seen.answered == len(seen.first) >= 2
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.close()
        with pytest.raises(LoadFailed):
            run_load(Target(port=1, acknowledge=upstream), connections=1, seconds=0.01)


def test_cpu_time_is_that_of_the_group_alone() -> None:
    code = """
import time
input()
begun = time.process_time()
while time.process_time() < begun + 0.2: pass
print(time.process_time() - begun, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as child:
        assert child.stdin and child.stdout
        time.sleep(0.2)  # It has started, and waits.
        with CpuTime(child.pid) as cpu:
            child.stdin.write("\n")
            child.stdin.flush()
            mine = time.process_time()
            while time.process_time() - mine < 0.1:
                pass
            told = float(child.stdout.readline())
        child.stdin.write("\n")
    assert told <= cpu.seconds < told + 0.08
    assert cpu.largest_share == 1.0


def test_ttft_is_told_beside_the_upstream_s_own() -> None:
    samples = Samples()
    samples.add("direct", {}, [0.001] * 99 + [0.010], 0.0)
    samples.add("floor", {"request_cpu_us": 100.0}, [0.002] * 99 + [0.020], 0.0)
    samples.add("floor", {"request_cpu_us": 900.0}, [5.0] * 100, 1.5)
    floor = samples.medians("floor")
    assert floor["request_cpu_us"] == 100.0
    assert floor["ttft_p50_added_ms"] == pytest.approx(1.0)
    assert floor["ttft_p99_added_ms"] == pytest.approx(10.0)


def test_ratios_are_of_samples_of_one_turn() -> None:
    samples = Samples()
    for slow, others in ((1, 0.0), (2, 0.0), (9, 0.0)):
        samples.add("floor", {"request_cpu_us": 100.0 * slow, "chunk_cpu_us": 10.0}, [], others)
        samples.add("other", {"request_cpu_us": 150.0 * slow, "crowd_cpu_us": 250.0}, [], 1.0)
    assert samples.ratio("request_cpu_us", "other") == pytest.approx(1.5)
    assert samples.ratio("chunk_cpu_us", "other") is None
    page = markdown(samples, {"floor": "Floor", "other": "Other"})
    assert "| busy: CPU of a request, µs | 200 | 300\\* |" in page
    assert "| ... over the floor's | 1.00x | 1.50x |" in page
    assert "| busy: CPU of an SSE chunk, µs | 10 | - |" in page
    assert "| requests per CPU second then | - | 4,000\\* |" in page


def test_two_workers_scale_by_their_cpu_and_the_balance_of_their_shares() -> None:
    samples = Samples()
    samples.add("one", {"crowd_cpu_us": 200.0, "balanced_workers": 1.0}, [], 0.0)
    assert samples.scaling("one", "two") is None
    samples.add("two", {"crowd_cpu_us": 220.0, "balanced_workers": 1.9}, [], 0.0)
    assert samples.scaling("one", "two") == pytest.approx(1.727, abs=1e-3)
