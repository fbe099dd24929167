"""The command's whole work, through real servers with the built-in model: measured, interrupted, gone on with, written."""

import json
import tomllib
from dataclasses import replace

import pytest

from penstock.cli import main
from penstock.config import load_settings
from penstock.errors import TuneError
from penstock.tune.levers.catalogue import Served
from penstock.tune.levers.job import LeversJob, tune
from penstock.tune.levers.report import Found, Report
from penstock.tune.levers.search import Limits
from penstock.tune.levers.space import Choice, Lever, Space
from penstock.tune.levers.trial import Loss, Trial
from penstock.tune.levers.workload import read_requests

TASKS = [
    {"question": "how do I list files?", "accept": ["ls.*"]},
    {"question": "how do I extract an archive?", "accept": ["tar .*"]},
    {"question": "how do I list files?", "accept": ["ls.*"]},
]
MODEL = Served("builtin:w8a8", {"model": "builtin", "quantize": "w8a8"})


@pytest.fixture
def workload(tmp_path):
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    return file


@pytest.fixture
def job(tmp_path):
    return LeversJob(
        workload="tasks",
        identity={"workload": "of the test"},
        limits=Limits(0.0),
        concurrency=1,
        max_tokens=64,  # so that answers end by themselves: only those are kept
        points=1,
        repeats=1,
        seed=0,
        common={"embedding_model": "none"},
        output=tmp_path / "out",
        force=False,
    )


def space(*choices):
    return Space((Lever("model", (Choice(MODEL.text, MODEL.settings),)), Lever("cache", choices)))


OFF, EXACT = Choice("no cache", {"cache": False}), Choice("exact cache", {"cache": True, "cache_mode": "off"})


def test_an_interrupted_job_goes_on_and_its_settings_can_be_served(job, workload, tmp_path):
    requests = read_requests(workload) * 12  # what the cache spares is more than the machine's noise
    measured = []

    def interrupt(what, done, of):
        measured.append(what)
        if len(measured) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(job, space(OFF, EXACT), requests, interrupt)
    assert list((tmp_path / ".out.work").glob("*.json"))
    kept = {file: file.read_bytes() for file in (tmp_path / ".out.work").glob("*.36.0.json")}
    assert len(kept) == 1 and not job.output.exists()

    report = tune(job, space(OFF, EXACT), requests, lambda *_: None)
    assert not (tmp_path / ".out.work").exists()
    assert report.chosen is not None and report.chosen.name == "exact cache" and report.chosen.cheaper > 1
    assert report.chosen.trial.outcomes == {"hit": 34, "miss": 2}
    assert report.chosen.trial.right == report.baseline.trial.right
    figures = json.loads((job.output / "tune.json").read_text())
    assert figures["chosen"] == "exact cache" and len(figures["points"]) == 2
    # What was measured before the interruption was not measured again.
    (before,) = (json.loads(content) for content in kept.values())
    assert before["cost"] in {cost for point in figures["points"] for cost in point["seconds_per_answer"]}
    assert (job.output / "tune.png").stat().st_size > 1000 and (job.output / "tune.svg").is_file()
    file = job.output / "penstock.toml"
    assert tomllib.loads(file.read_text())["cache_mode"] == "off"
    settings = load_settings({"config": str(file)}, {})
    assert settings.model == "builtin" and settings.quantize == "w8a8" and settings.cache


def test_what_does_not_come_up_is_in_the_report_and_is_not_tried_again(job, workload, tmp_path, capfd):
    broken = Choice("no such model", {"model": "/nowhere"})
    with pytest.raises(TuneError, match="Nothing that was tried is cheaper"):
        tune(job, space(OFF, broken), read_requests(workload), lambda *_: None)
    assert "no such model" in (job.output / "tune.md").read_text()
    assert not (job.output / "penstock.toml").exists()
    (_, failed) = json.loads((job.output / "tune.json").read_text())["points"]
    assert failed["failure"]
    # What was measured stays for other limits; nothing is served again.
    capfd.readouterr()
    started = (tmp_path / ".out.work").stat().st_mtime_ns
    with pytest.raises(TuneError):
        tune(replace(job, force=True), space(OFF, broken), read_requests(workload), lambda *_: None)
    assert (tmp_path / ".out.work").stat().st_mtime_ns == started
    assert "nowhere" not in capfd.readouterr().err


def found(costs, *, changed=1, broken="", baseline=(10.0, 11.0, 10.5)):
    space = Space((Lever("a", (Choice("zero", {}), Choice("one", {}))),) * 2)
    point = (0, 0) if not changed else (1, changed - 1)

    def trials(costs):
        return [
            Trial(point=point, requests=9, cost=cost, right=(True,) * 9, first_token=1, last_token=1)
            for cost in costs
        ]

    limits = Limits(0.01)
    made = Found.of(space, trials(costs), Loss(0.0, 0.0, 0.0), trials(baseline), limits)
    return replace(made, broken=broken)


def chosen(*points, baseline=(10.0, 11.0, 10.5)):
    return Report(
        workload="w",
        requests=9,
        questions=9,
        concurrency=1,
        rungs=[9],
        limits=Limits(0.01),
        baseline=found(baseline, changed=0, baseline=baseline),
        found=points,
        tried=0,
        machine="m",
    ).chosen


def test_a_clear_gain_is_chosen_however_noisy_others_are():
    clear, noisy = found((3.3, 3.2, 3.4), changed=2), found((5.0, 9.0, 4.0), changed=1)
    assert chosen(clear, noisy) is clear


def test_what_noise_does_not_tell_apart_goes_to_the_fewest_levers():
    cheapest, simpler = found((3.0, 3.0, 3.3), changed=2), found((3.1, 3.2, 3.1), changed=1)
    assert chosen(cheapest, simpler) is simpler
    assert chosen(cheapest, found((3.6, 3.5, 3.7), changed=1)) is cheapest


def test_nothing_is_chosen_that_was_not_always_cheaper_or_is_known_from_one_time_only():
    assert chosen(found((9.0, 9.0, 10.7), changed=1)) is None
    assert chosen(found((8.0,)), found((9.5, 9.9, 9.6))).costs == [9.9, 9.6]
    assert chosen(found((1.0, 1.0, 1.0), broken="loses too much")) is None


def test_the_time_that_had_a_point_repeated_is_not_counted():
    lucky = found((5.0, 9.0, 9.4))
    assert lucky.costs == [9.0, 9.4] and lucky.cost == 9.2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-loss", "2"], "max_loss is 2.0; it must be a share, from 0 to 1."),
        (["--points", "0"], "points is 0; it must be at least 1."),
        (["--max-ttft", "0"], "max_ttft is 0.0; it must be above 0."),
        (["--max-price", "1"], "give --local-hour-price"),
        (["--small", "s"], "small and router go together"),
        (["builtin"], "A model is named twice"),
        (["--small", "s", "--router", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_served(options, says, workload, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["tune", "levers", "builtin", *options, "--data", str(workload), "--output", str(out)]) == 1
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_a_workload_that_is_none_is_refused(tmp_path, capsys):
    assert (
        main(["tune", "levers", "builtin", "--data", str(tmp_path / "x"), "--output", str(tmp_path / "o")])
        == 1
    )
    assert "cannot be read" in capsys.readouterr().err
