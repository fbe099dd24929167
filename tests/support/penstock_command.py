"""`penstock serve` as a process of its own."""

import subprocess
import sys

PENSTOCK = [sys.executable, "-m", "penstock"]


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*PENSTOCK, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    announcement = process.stdout.readline()
    kernels, embeddings, hint = (process.stdout.readline() for _ in range(3))
    if hint.startswith("Upstreams"):
        hint = process.stdout.readline()
    assert kernels.startswith(("CPU kernels in C: attention paged_attention, ", "CPU kernels in torch's ")), (
        kernels
    )
    assert embeddings.startswith(("Embeddings by ", "No embedding model: ")), embeddings
    assert hint.startswith("Try:  curl "), announcement
    return process, announcement.split(" at ")[-1].strip()
