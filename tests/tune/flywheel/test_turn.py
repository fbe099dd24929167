"""The whole of a turn, with the built-in model: its 8-bit form is a student that says nearly the same for much less."""

import json

import pytest
from cache_worker import make_completion, make_key

from penstock.cache import CompletionCache, WholePrompt
from penstock.cli import main
from penstock.config import load_settings
from penstock.models.location import resolve_model
from penstock.proxy.routing.learned import Judge
from penstock.tune.flywheel import run

DO = "list find copy move delete rename compress extract count sort search compare run show watch kill start stop mount open"
WHAT = (
    "files folders lines archives images processes packages services users logs disks ports branches containers commits "
    "hosts tables keys links jobs volumes networks"
)

# So many questions that the judge's gain over a random mix is sure, however they are split.
HOW = ("", " by size", " on another machine")


@pytest.fixture
def cache(tmp_path):
    with CompletionCache(tmp_path / "cache") as cache:
        for number, question in enumerate(
            f"how do I {do} {what}{how}?" for do in DO.split() for what in WHAT.split() for how in HOW
        ):
            asked = [{"role": "user", "content": question}]
            cache.store(
                make_key(number, "default"),
                make_completion(number, 20),
                prompt=WholePrompt("m", messages=asked),
            )
        cache.flush()
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_turn_that_was_interrupted_goes_on_and_is_switched_on(cache, tmp_path, monkeypatch, capsys):
    file, output = tmp_path / "penstock.toml", tmp_path / "out"
    file.write_text(
        f'model = "builtin"\nquantize = "none"\nembedding_model = "none"\ntenants = false\ncache_path = "{cache}"\n'
    )
    options = "--quality 0.8 --score command --minutes 1 --repeats 1 --max-tokens 64"
    command = ["flywheel", "--config", str(file), "--output", str(output), *options.split()]
    command += ["--student", str(resolve_model("builtin"))]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "make_router", interrupted)
        assert main(command) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    kept = {
        name: file.read_bytes() for file in (tmp_path / ".out.work").glob("*.0.json") if (name := file.name)
    }
    assert len(kept) == 5 and not output.exists()

    assert main([*command, "--switch"]) == 0
    printed = capsys.readouterr().out
    assert "times cheaper per answer, as checked" in printed and "is switched" in printed
    figures = json.loads((output / "flywheel.json").read_bytes())
    # What was timed before was not timed again.
    assert figures["timings"]["large"] == json.loads(kept["large.0.json"])["seconds"]
    chosen = figures["rehearsed"][-1]
    assert chosen["checked"]["kept"] > 0.3 and chosen["seen"]["kept"] > 0.3
    settings = load_settings({"config": str(file)}, {})
    route = settings.routes["builtin"]
    Judge.load(route.router).check(
        small="builtin-student", large="builtin", predictive=route.policy == "predictive", quality=0.8
    )
    assert not (tmp_path / ".out.work").exists()
