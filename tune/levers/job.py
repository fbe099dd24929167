"""The whole of `penstock tune levers`, but for arguments: search, repeat what is best, choose, write."""

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...compress.folder import WorkFolder, check_target, new_folder
from ...compress.machine import machine
from ...errors import TuneError
from ..own_server import own_server
from .catalogue import ASKED
from .plot import draw
from .replay import replay
from .report import Found, Report, as_dict, lines
from .search import Limits, rungs, search
from .settings_file import toml
from .space import Point, Space
from .trial import Loss, Trial, loss_of, trial_of
from .workload import Request, part_of

SETTINGS = "penstock.toml"
# Of the best, measured again in turn with the baseline: what their spread is tells what a difference means.
BEST = 3

# What is being measured, how many are, and of about how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LeversJob:
    """Attributes:
    workload: its name; identity: what makes models and workload the same as in an earlier run.
    limits: what the chosen point may lose and take.
    concurrency: requests at a time.
    points: how many to begin with.
    repeats: how often the best are measured.
    common: settings of every server, the chosen one too.
    output: a folder.
    """

    workload: str
    identity: Mapping[str, Any]
    limits: Limits
    concurrency: int
    max_tokens: int
    points: int
    repeats: int
    seed: int
    common: Mapping[str, Any]
    output: Path
    force: bool


def tune(job: LeversJob, space: Space, requests: Sequence[Request], progress: Progress) -> Report:
    """Writes the folder. Interrupted, the same job goes on where it was.

    Raises TuneError where nothing is cheaper than the baseline within the limits; the report is in its folder all the same.
    """
    check_target(job.output, force=job.force)
    work = WorkFolder(job.output, {**job.identity, "space": _described(space), "seed": job.seed})
    try:
        report = _report(_Bench(job, space, requests, work.path, progress))
        with new_folder(job.output, force=job.force) as folder:
            (folder / "tune.md").write_text("\n".join(lines(report)) + "\n", encoding="utf-8")
            (folder / "tune.json").write_text(json.dumps(as_dict(report), indent=1) + "\n", encoding="utf-8")
            draw(report, [folder / "tune.png", folder / "tune.svg"])
            if report.chosen is not None:
                settings = {**job.common, **space.settings(report.chosen.trial.point)}
                (folder / SETTINGS).write_text(toml(settings, _comment(report)), encoding="utf-8")
    except BaseException:
        work.close()
        raise
    if report.chosen is None:
        work.close()  # with other limits it is chosen anew from what was measured
        raise TuneError(
            f"Nothing that was tried is cheaper than the baseline within the limits; {job.output / 'tune.md'} says what was "
            "tried. Allow more --max-loss with --force, or offer other models."
        )
    work.done()
    return report


class _Bench:
    """Measures points, each once for each number of requests, and keeps what it measured."""

    def __init__(
        self, job: LeversJob, space: Space, requests: Sequence[Request], folder: Path, progress: Progress
    ) -> None:
        self.job, self.space, self.requests = job, space, requests
        self._folder, self._progress = folder, progress
        self._done = 0

    def measure(self, point: Point, count: int, repeat: int = 0) -> Trial:
        self._progress(f"{self.space.named(point)}, {count} requests", self._done, self._done + 1)
        places = part_of(self.requests, count, self.job.seed)
        name = f"{'-'.join(map(str, point))}.{len(places)}.{repeat}.json"
        file = self._folder / name
        if file.is_file():
            trial = msgspec.json.decode(file.read_bytes(), type=Trial)
        else:
            trial = self._served(point, [self.requests[place] for place in places])
            part = file.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(trial))
            os.replace(part, file)
        self._done += 1
        return trial

    def judged(self, point: Point, count: int) -> tuple[Trial, Loss]:
        trial = self.measure(point, count)
        return trial, self.loss(trial, count)

    def loss(self, trial: Trial, count: int) -> Loss:
        """Beside the baseline on the same requests."""
        if trial.failure:
            return Loss(1.0, 1.0, 1.0)
        baseline = self.measure(self.space.baseline, count)
        places = part_of(self.requests, count, self.job.seed)
        return loss_of([self.requests[place] for place in places], trial.right, baseline.right)

    def _served(self, point: Point, requests: Sequence[Request]) -> Trial:
        job = self.job
        with tempfile.TemporaryDirectory(prefix="penstock-tune-") as folder:
            settings = {
                **job.common,
                **self.space.settings(point),
                "cache_path": str(Path(folder, "cache")),
                "tenants": False,
            }
            settings.setdefault("served_model_name", ASKED)
            file = Path(folder, SETTINGS)
            file.write_text(toml(settings), encoding="utf-8")
            try:
                with own_server(["--config", str(file)]) as url:
                    seen = asyncio.run(
                        replay(url, requests, concurrency=job.concurrency, max_tokens=job.max_tokens)
                    )
            except TuneError as error:
                if point == self.space.baseline:
                    raise
                return Trial(point=point, requests=len(requests), failure=error.message)
        return trial_of(point, requests, seen)


def _report(bench: _Bench) -> Report:
    job, space, count = bench.job, bench.space, len(bench.requests)
    seen = search(space, bench.judged, job.limits, requests=count, points=job.points, seed=job.seed)
    last = [(trial, loss) for trial, loss in seen if trial.requests == count]
    within = sorted(
        (trial for trial, loss in last if not job.limits.broken(trial, loss)),
        key=lambda trial: (trial.cost, trial.point),
    )
    repeated = {space.baseline: [bench.measure(space.baseline, count)]}
    repeated |= {trial.point: [trial] for trial in within[:BEST]}
    for repeat in range(1, job.repeats):
        for point, trials in repeated.items():
            trials.append(bench.measure(point, count, repeat))
    baseline = repeated[space.baseline]

    def found(trial: Trial, loss: Loss) -> Found:
        return Found.of(space, repeated.get(trial.point, [trial]), loss, baseline, job.limits)

    return Report(
        workload=job.workload,
        requests=count,
        questions=len({request.key for request in bench.requests}),
        concurrency=job.concurrency,
        rungs=rungs(count),
        limits=job.limits,
        baseline=found(baseline[0], Loss(0.0, 0.0, 0.0)),
        found=[found(*pair) for pair in last],
        tried=len({trial.point for trial, _ in seen} - {trial.point for trial, _ in last}),
        machine=machine(),
    )


def _described(space: Space) -> list[Any]:
    return [
        [lever.name, [[choice.name, toml(choice.settings)] for choice in lever.choices]]
        for lever in space.levers
    ]


def _comment(report: Report) -> str:
    assert report.chosen is not None
    return (
        f"{report.chosen.name}: {report.chosen.cheaper:.2f} times cheaper than the baseline,\n"
        f"measured on {report.workload}. Start: penstock serve --config {SETTINGS}"
    )
