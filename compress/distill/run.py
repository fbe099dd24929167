"""`penstock distill`: models and texts checked, the student trained, measured, and written as a folder.

Knows no command line, and neither engine nor cache: examples are handed in.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import CompressError
from ...models.fingerprint import fingerprint
from ...models.location import resolve_model
from ...models.tokenizer import Tokenizer
from ..companion_files import copy_companions
from ..folder import check_target, new_folder, work_folder, work_path
from ..kept_texts import fingerprint_of, kept_dataset, read_dataset
from ..plain_model import PlainModel, load_plain
from ..texts import Example
from ..training.batches import Batches, Place
from ..training.loop import BatchSource, TrainingReport, train
from ..training.team import ALONE, Team
from .card import card
from .dataset import Dataset, make_dataset
from .job import Distilled, DistillJob
from .measure import measure
from .objective import Distillation
from .on_policy import OnPolicy
from .students import from_config, take_layers
from .vocabulary import check_rows, check_same_vocabulary, size_of

# Of the held-out texts: so many for the losses on the way, and for the figures at the end.
WATCHED, MEASURED = 64, 400


def check_job(job: DistillJob) -> Tokenizer:
    """Refuses what can be refused without loading weights; the teacher's tokenizer. Raises PenstockError."""
    check_target(job.output, force=job.force, sources=[job.teacher, *([job.student] if job.student else [])])
    training_device(job.device)
    tokenizer = Tokenizer.load(job.teacher)
    if job.student is not None:
        check_same_vocabulary(tokenizer, Tokenizer.load(job.student))
    return tokenizer


def distill(job: DistillJob, examples: Sequence[Example], team: Team = ALONE) -> Distilled:
    """Writes the student's folder. An interrupted job goes on where it was when it is run again with the same examples, or
    cache.

    Args:
        team: whom this process leads, each of whom calls `assist` with the same job.

    Raises PenstockError naming what is wrong; KeyboardInterrupt after Ctrl-C. The folder appears whole or not at all.
    """
    pair = _Pair(job, team)
    student, teacher, dtype = pair.student, pair.teacher, pair.dtype
    given = fingerprint_of(examples)
    with work_folder(job.output, _identity(job, teacher, given)) as work:
        make = partial(
            make_dataset,
            pair.tokenizer,
            examples,
            max_tokens=min(job.max_tokens, _context(teacher.module), _context(student)),
            held_out_share=job.held_out_share,
        )
        dataset = kept_dataset(work.path, given, make)
        team.wait()
        report = pair.train(dataset, work.path)
        parameters = sum(p.numel() for p in student.parameters())
        with new_folder(job.output, force=job.force, expected_bytes=parameters * dtype.itemsize) as staging:
            student.to(dtype).save_pretrained(staging)
            copy_companions(teacher.path, staging)
            shutil.copy(report.log, staging / "training.jsonl")
            measured = measure(staging, teacher, dataset.held_out[:MEASURED], pair.device)
            done = Distilled(measured, report, dataset)
            text = card(job, done, parameters, sum(p.numel() for p in teacher.module.parameters()))
            (staging / "README.md").write_text(text, encoding="utf-8")
    return done


def assist(job: DistillJob, team: Team) -> None:
    """Trains along with the process that leads the team, on the texts that it keeps; writes nothing. Raises as `distill`."""
    pair = _Pair(job, team)
    team.wait()
    work = work_path(job.output)
    pair.train(read_dataset(work), work)


class _Pair:
    """Teacher and student, checked, on this process's device."""

    def __init__(self, job: DistillJob, team: Team) -> None:
        self.job, self.team = job, team
        self.tokenizer = check_job(job)
        self.device = team.device or training_device(job.device)
        self.teacher = load_plain(job.teacher, device=self.device)
        self.student = _student(job, self.teacher, self.device)
        check_rows(self.teacher.module, self.tokenizer, "The teacher")
        check_rows(self.student, self.tokenizer, "The student")
        self.dtype: torch.dtype = self.student.dtype if job.config is None else self.teacher.module.dtype
        width = self.student.config.get_text_config().hidden_size
        self.objective = Distillation(self.teacher.module, width, job.loss)

    def train(self, dataset: Dataset, work: Path) -> TrainingReport:
        self.team.check_same("texts", (len(dataset.train), dataset.train[0].ids))
        return train(
            self.student,
            _source(self.job, dataset, self.student, self.tokenizer, self.team.place),
            dataset.held_out[:WATCHED],
            self.objective,
            self.job.training,
            work,
            label="distilling",
            team=self.team,
        )


def training_device(setting: str) -> str:
    """Of "auto", "cpu", "cuda". Raises CompressError where there is no such device."""
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise CompressError(
            "device is 'cuda', but torch finds no CUDA device; install a CUDA build of torch and the driver, or use "
            "'cpu'.",
            param="device",
        )
    return "cuda"


def _student(job: DistillJob, teacher: PlainModel, device: str) -> Any:
    if job.student is not None:
        return load_plain(job.student, device=device).module
    if job.layers is not None:
        return take_layers(teacher.module, job.layers)
    assert job.config is not None
    student = from_config(job.config, job.training.seed)
    student.generation_config = teacher.module.generation_config
    return student.to(device)


def _origin(job: DistillJob) -> str:
    """What the student is made of, as a digest."""
    if job.student is not None:
        return fingerprint(resolve_model(job.student))
    return f"{job.layers} layers" if job.config is None else job.config.read_text(encoding="utf-8")


def _source(
    job: DistillJob, dataset: Dataset, student: Any, tokenizer: Tokenizer, place: Place
) -> BatchSource:
    settings = job.training
    if not job.on_policy:
        return Batches(dataset.train, settings.batch_tokens, settings.seed, place)
    ends = student.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or []
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return OnPolicy(
        dataset.train,
        student,
        share=job.on_policy,
        batch_tokens=settings.batch_tokens,
        seed=settings.seed,
        ends=frozenset([*ends, *own]),
        vocab_size=size_of(tokenizer),
        place=place,
    )


def _identity(job: DistillJob, teacher: PlainModel, given: str) -> dict[str, Any]:
    """What makes it the same job. Not the learning rate: one that was too high is lowered on the way."""
    training = asdict(job.training)
    del training["learning_rate"]
    return {
        "teacher": teacher.fingerprint,
        "student": _origin(job),
        "data": job.cache or given,
        "max_tokens": job.max_tokens,
        "held_out_share": job.held_out_share,
        "loss": asdict(job.loss),
        "on_policy": job.on_policy,
        "training": training,
    }


def _context(module: Any) -> int:
    """Tokens that the model takes, and one more, which is only predicted."""
    found: int | None = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    return (found or 1 << 30) + 1
