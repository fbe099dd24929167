"""Tuning runs end to end without a GPU, writes what can be read, and takes no candidate that gives something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tune_kernels
from tune_kernels import MARGIN, Refused, Tuner, compare, winner
from tuning_candidates import written

from penstock.kernels.gpu.config import Config, check, read_tuned
from penstock.kernels.gpu.tunable import TUNABLE

ROOT = Path(__file__).parents[2]
# One of each operation, and what differs in kind.
CASES = [
    "int8_matmul decode_16",
    "int8_matmul prefill",
    "grouped_int8_matmul prefill",
    "grouped_int8_matmul decode",
    "weight_only_matmul decode_4_16",
    "paged_attention prefill_64_int8",
    "paged_attention combine",
    "sparse_attention score_min_max_64",
    "sparse_prompt score_64_int8",
    "sparse_prompt select",
    "sparse_prompt attend_64_int8",
    "store_kv store_64_int8",
    "rms_norm block_1024",
    "silu_mul block_1024",
    "quantize_activation pieces",
    "rotary heads",
    "sample draw",
]


def test_the_tiny_run_tries_every_operation_and_writes_what_can_be_read(tmp_path):
    command = [
        sys.executable,
        ROOT / "bench" / "tune_kernels.py",
        "--tiny",
        "--out",
        tmp_path,
        "--only",
        *CASES,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.iterdir()
    assert path.name == "interpreter.json"
    choices = read_tuned(path).choices
    assert {" ".join(key) for key in choices} == set(CASES) and {case.split()[0] for case in CASES} == set(
        TUNABLE
    )
    # The first candidate agrees where nothing is rounded.
    assert choices["int8_matmul", "prefill"] == written()["int8_matmul", "prefill"][0]
    measured = json.loads(path.read_text())["measured"]
    assert set(measured) == {"date", "commit", "driver", "torch", "triton"}


def test_started_again_it_goes_on_and_after_a_change_it_starts_anew(tmp_path, monkeypatch):
    def tune(self, operation, case, candidates):
        tuned.append(case)
        return {"tiles": {}, "num_warps": 1, "num_stages": 1}

    monkeypatch.setattr(Tuner, "tune", tune)
    tuned: list[str] = []
    for _ in range(2):
        assert Tuner(True, tmp_path, float("inf")).run(["rms_norm"]) == 0
    assert sorted(tuned) == sorted(TUNABLE["rms_norm"])
    monkeypatch.setattr(tune_kernels, "machine", lambda: {"commit": "another"})
    assert Tuner(True, tmp_path, float("inf")).run(["rms_norm block_1024"]) == 0
    assert list(read_tuned(tmp_path / "interpreter.json").choices) == [("rms_norm", "block_1024")]
    assert Tuner(True, tmp_path, 0.0).run(["rms_norm pieces"]) == 0
    assert tuned[len(TUNABLE["rms_norm"]) :] == ["block_1024"], "no time left"


def test_the_fastest_that_passes_wins_by_a_margin():
    took = [(8.0, "b"), (7.0, "a"), (9.7, "c")]
    assert winner(10.0, "default", took, lambda own: True) == (7.0, "a")
    assert winner(10.0, "default", took, lambda own: own != "a") == (8.0, "b")
    assert winner(10.0, "default", took, lambda own: False) == (10.0, "default")
    assert winner(7.0 / MARGIN, "default", took, lambda own: True) == (7.0 / MARGIN, "default")


def test_what_gives_something_else_is_refused():
    x = torch.ones(3, 8)
    close, far, broken = x + 1e-6, x * 1.1, x * float("nan")
    compare([close], [x], exact=False)
    compare([x.clone(), x.int()], [x, x.int()], exact=True)
    with pytest.raises(Refused, match="other bits"):
        compare([close], [x], exact=True)
    for found in (far, broken):
        with pytest.raises(Refused, match="from the default"):
            compare([found], [x], exact=False)
    with pytest.raises(Refused, match="other integers"):
        compare([x.int() + 1], [x.int()], exact=False)


def test_every_case_has_candidates_and_all_are_allowed():
    candidates = written()
    assert set(candidates) == {(operation, case) for operation, cases in TUNABLE.items() for case in cases}
    for (operation, case), configs in candidates.items():
        assert 0 < len(configs) <= 10 and len(set(map(str, configs))) == len(configs)
        for config in configs:
            assert isinstance(config, Config)
            check(Path("candidates"), f"{operation} {case}", config, TUNABLE[operation][case])


def test_a_name_that_is_no_case_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="--only 'int8_matmul decode_8' is no operation, and no case of one"):
        Tuner(True, tmp_path, float("inf")).run(["rms_norm", "int8_matmul decode_8"])
    assert not list(tmp_path.iterdir())


def test_tiny_numbers_never_get_to_the_engine():
    command = [sys.executable, ROOT / "bench" / "tune_kernels.py", "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "name another folder by --out" in done.stderr
