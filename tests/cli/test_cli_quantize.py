"""`penstock quantize` as a command of its own."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from noted_engines import noted_engines

from penstock import cli_engine_runs
from penstock.cache.completion_cache import CompletionCache
from penstock.cache.key import CacheKey, namespace_hash, tenant_hash
from penstock.cache.values import CachedChoice, CachedCompletion, WholePrompt
from penstock.cli import main
from penstock.compress.quantize import whole

TEXT = "the list of files in a folder and how to extract an archive or search for text in it"
LOOSE = ["--max-kl", "0.9", "--min-agreement", "0"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(9)
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [json.dumps({"text": " ".join(draw.choices(TEXT.split(), k=36))}) for _ in range(80)]
    file.write_text("\n".join(lines))
    return file


def quantize(model: Path | str, output: Path, *arguments: str) -> list[str]:
    return ["quantize", str(model), "--output", str(output), "--no-speed", *LOOSE, *arguments]


def fill(path: Path, questions: int) -> None:
    """With answers to different prompts of the tenant without a key."""
    draw = random.Random(9)
    with CompletionCache(path) as cache:
        for number in range(questions):
            place = tenant_hash("default") + namespace_hash("") + number.to_bytes(16, "big")
            asked, answered = (" ".join(draw.choices(TEXT.split(), k=18)) for _ in range(2))
            completion = CachedCompletion([CachedChoice(answered, [], "stop", None, None)], 0, 0.0)
            cache.store(CacheKey(place, bytes(32)), completion, prompt=WholePrompt("any", text=asked))


def failed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that a mistake is answered with."""
    assert main(arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("penstock quantize: ")
    return line


def test_it_writes_a_folder_and_says_what_it_is_worth(
    tiny_llama: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small"
    assert main(quantize(tiny_llama, output, "--scheme", "w4a16", "--data", str(texts))) == 0
    printed = capsys.readouterr().out
    assert "14 layers in w4a16 group 32, 1 layer in w8a16" in printed
    assert re.search(r"beside the model as stored, on \d+ texts it was not calibrated on: KL ", printed)
    assert {"README.md", "quantization.json", "config.json", "model.safetensors"} <= {
        path.name for path in output.iterdir()
    }


def test_it_is_judged_by_the_texts_that_are_named(
    tiny_llama: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judges = tmp_path / "judges.jsonl"
    arguments = quantize(tiny_llama, tmp_path / "small", "--scheme", "w4a16", "--data", str(texts))
    arguments += ["--judge", str(judges)]
    assert "judges.jsonl cannot be read" in failed(capsys, arguments)
    others = [json.dumps({"text": f"{number} of seven files in a folder"}) for number in range(7)]
    judges.write_text("\n".join(others))
    assert main(arguments) == 0
    assert "on 7 texts it was not calibrated on" in capsys.readouterr().out


@pytest.mark.parametrize("lonely", [False, True])
def test_it_times_both_and_says_which_is_faster(
    lonely: bool,
    tiny_llama: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli_engine_runs, "DECODED_TOKENS", 4)
    timed = noted_engines(monkeypatch, lonely=lonely)
    arguments = quantize(tiny_llama, tmp_path / "small", "--scheme", "w8a8", "--data", str(texts))
    arguments.remove("--no-speed")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for batch in (1, 16):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"batch {batch}: ")]
        assert "than the model as stored" in line or "as fast as" in line
    speeds = json.loads((tmp_path / "small/quantization.json").read_text())["speed"]
    assert [speed["batch"] for speed in speeds["quantized"]] == [1, 16]
    names = [tiny_llama.name, ".small.partial"]
    assert timed == ([*names, tiny_llama.name] if lonely else names)


def test_interrupted_it_goes_on_to_the_same_bits(tiny_llama: Path, texts: Path, tmp_path: Path) -> None:
    def arguments(output: Path) -> list[str]:
        return quantize(tiny_llama, output, "--scheme", "w4a16", "--data", str(texts))

    cut, uncut = tmp_path / "cut", tmp_path / "uncut"
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments(cut)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    work = tmp_path / ".cut.work"
    deadline = time.monotonic() + 120
    while not list(work.glob("block-0-*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "the same command goes on from here" in printed and "Traceback" not in printed
    assert {path.name for path in tmp_path.iterdir()} == {".cut.work"}
    kept = list(work.glob("block-*"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would round otherwise
    try:
        for output in (cut, uncut):
            assert main(arguments(output)) == 0
    finally:
        torch.set_num_threads(threads)
    assert kept, "nothing was done before the interruption"
    for name in ("model.safetensors", "config.json"):
        assert (cut / name).read_bytes() == (uncut / name).read_bytes()
    reports = [json.loads((output / "quantization.json").read_text()) for output in (cut, uncut)]
    assert reports[0]["layers"] == reports[1]["layers"]
    assert {path.name for path in tmp_path.iterdir()} == {"cut", "uncut"}


def test_what_the_cache_was_asked_calibrates(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    fill(cache, questions=100)
    where = ["--from-cache", "--cache-path", str(cache)]
    assert main(quantize(tiny_llama, tmp_path / "small", "--scheme", "w8a8", *where)) == 0
    report = json.loads((tmp_path / "small/quantization.json").read_text())
    assert report["calibration"]["source"] == "100 answers that a cache kept"
    line = failed(
        capsys, quantize(tiny_llama, tmp_path / "x", "--scheme", "w8a8", *where, "--tenant", "others")
    )
    assert "holds nothing of tenant 'others'" in line


def test_mistakes_are_one_line_before_anything_is_computed(
    tiny_llama: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "small"
    given = ["--scheme", "w8a8", "--data", str(texts)]
    assert "no such folder" in failed(capsys, quantize("/no/where", output, *given))
    assert "cannot be read" in failed(
        capsys, quantize(tiny_llama, output, "--scheme", "w8a8", "--data", str(tmp_path / "none"))
    )
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "a file"}\n{"text": "a folder"}\n')
    assert "2 different texts, with 2 different prompts or topics, are too few" in failed(
        capsys, quantize(tiny_llama, output, "--scheme", "w8a8", "--data", str(short))
    )
    assert "max_kl is 0.0" in failed(capsys, [*quantize(tiny_llama, output, *given), "--max-kl", "0"])
    assert "min_agreement is 95.0" in failed(
        capsys, [*quantize(tiny_llama, output, *given), "--min-agreement", "95"]
    )
    assert "group_size is of 4 bits" in failed(
        capsys, [*quantize(tiny_llama, output, *given), "--group-size", "64"]
    )
    assert "give --from-cache" in failed(capsys, [*quantize(tiny_llama, output, *given), "--tenant", "me"])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("precious")
    assert "--force" in failed(capsys, quantize(tiny_llama, taken, *given))
    assert not output.exists() and [path.name for path in taken.iterdir()] == ["mine"]


def test_a_quantized_model_is_not_quantized_again(
    tiny_llama: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--scheme", "w8a8", "--data", str(texts)]
    assert main(quantize(tiny_llama, tmp_path / "small", *given)) == 0
    assert "is stored quantized" in failed(capsys, quantize(tmp_path / "small", tmp_path / "smaller", *given))


SIGNALS = pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@SIGNALS
def test_an_interruption_that_a_library_turns_into_an_error_is_one_all_the_same(
    tiny_llama: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    """As safetensors does when the signal comes while it reads."""

    def interrupted(file: Path) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")

    monkeypatch.setattr(whole, "load", interrupted)
    before = signal.getsignal(number)
    given = ["--scheme", "w8a8", "--data", str(texts)]
    assert main(quantize(tiny_llama, tmp_path / "small", *given)) == status
    assert signal.getsignal(number) is before
    assert {path.name for path in tmp_path.iterdir()} == {".small.work"}


@SIGNALS
def test_a_folder_that_is_half_written_goes(
    tiny_llama: Path,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    def interrupted(*_: object) -> None:
        assert (tmp_path / ".small.partial/model.safetensors").exists()
        os.kill(os.getpid(), number)

    given = ["--scheme", "w8a8", "--data", str(texts)]
    with monkeypatch.context() as patched:
        patched.setattr("penstock.compress.quantize.run._judge", interrupted)
        assert main(quantize(tiny_llama, tmp_path / "small", *given)) == status
    assert "the same command goes on from here" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {".small.work"}
    assert main(quantize(tiny_llama, tmp_path / "small", *given)) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"small"}
