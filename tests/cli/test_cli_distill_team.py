"""`penstock distill` on several devices, as a launcher starts it: an interruption costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_model import write_tiny_model

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*LAUNCHER, "-m", "penstock", *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_in_the_middle_and_the_same_student_in_the_end(tmp_path: Path) -> None:
    teacher = write_tiny_model(tmp_path / "teacher")
    questions = tmp_path / "questions.jsonl"
    lines = [
        {"prompt": f"how {chr(97 + i % 26)} {chr(97 + i // 26)}", "completion": f"so {i}"} for i in range(60)
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["distill", "--teacher", str(teacher), "--layers", "1", "--data", str(questions)]
    command += ["--steps", "150", "--batch-tokens", "256", "--on-policy", "0.2", "--output"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = start([*command, str(whole)])
    assert job.communicate()[1].count("Traceback") == 0 and job.returncode == 0

    job = start([*command, str(parts)])
    log = tmp_path / ".parts.work/training.jsonl"
    while not (log.exists() and '"step": 10,' in log.read_text()):
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.02)
    job.send_signal(signal.SIGINT)
    assert "Interrupted; the same command goes on from here." in job.communicate()[1]
    assert not parts.exists()
    stopped = torch.load(log.with_name("checkpoint.pt"))["step"]
    assert 10 <= stopped < 150

    job = start([*command, str(parts)])
    assert job.communicate()[1].count("Traceback") == 0 and job.returncode == 0
    expected, found = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())
    assert not list(tmp_path.glob(".*"))


def test_what_the_first_process_finds_wrong_is_a_line_of_each(tmp_path: Path) -> None:
    teacher = write_tiny_model(tmp_path / "teacher")
    data = tmp_path / "one.jsonl"
    data.write_text('{"prompt": "how", "completion": "so"}\n')
    command = ["distill", "--teacher", str(teacher), "--layers", "1", "--data", str(data), "--steps", "9"]
    job = start([*command, "--output", str(tmp_path / "student")])
    told = job.communicate()[1]
    lines = [line for line in told.splitlines() if "penstock distill: " in line]
    assert job.returncode != 0 and any(
        "are too few to train on some and hold out others" in line for line in lines
    )
    assert "RuntimeError" not in told
