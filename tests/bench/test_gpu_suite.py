"""The suite for a GPU runs end to end without one."""

import json
import subprocess
import sys
from pathlib import Path

from penstock.kernels.gpu.ahead_of_time import kernel_modules

ROOT = Path(__file__).parents[2]


def test_the_tiny_run_compares_every_kernel_and_serves(tmp_path):
    out = tmp_path / "results.json"
    command = [
        sys.executable,
        ROOT / "bench" / "gpu_suite.py",
        "--tiny",
        "--out",
        out,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    kinds = {row["name"].split()[0] for row in report["kernels"]}
    launched = set(kernel_modules()) - {"store_kv"}  # part of every attention's case
    assert kinds == launched
    assert all(row["error"] < 5e-3 and row["seconds"] is None for row in report["kernels"])
    for way in ("transformers", "W8A8", "W8A8, INT8 KV"):
        figures = report[f"engine {way}"]
        assert (figures["tokens at 1"], figures["tokens at 2"]) == (3, 6)
    assert report["tests"]["exit"] == 0, report["tests"]["tail"]
    assert report["interpreted"] and report["machine"]["triton"]
    assert "paged_attention int8 decode" in done.stdout
