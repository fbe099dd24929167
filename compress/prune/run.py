"""`penstock prune`: what matters least is cut out, the rest recovers from the parent where that helps, and a gate decides.

Knows no command line, and neither engine nor cache: texts and the measuring of speed are handed in.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import CompressError
from ..distill.dataset import Dataset
from ..distill.recover import recover
from ..distill.run import training_device
from ..evaluate import Comparison, PlainScorer, compare_all
from ..folder import WorkFolder, check_target, new_folder, work_folder
from ..kept_texts import fingerprint_of, kept_dataset
from ..own_texts import dataset_of
from ..plain_model import DTYPES, PlainModel, load_plain
from ..texts import Example
from ..training.loop import TrainingReport
from .job import PARENT, PRUNED, Done, MeasureSpeed, Progress, PruneJob
from .plan import check_targets, make_plan, save_model
from .report import as_dict, card, failures
from .structure import structure_of

# Of the held-out texts: so many for the losses on the way, and for the figures at the end.
WATCHED, MEASURED = 32, 400
# Up to this many parameters the parent is computed in float32: no rounding of its own is then in the way.
FLOAT32_PARAMETERS = 1 << 30
REPORT = "prune.json"
HELD_OUT_SHARE = 0.1
# Written by the model itself, where no texts are given: so many, of so many tokens at most.
SYNTHETIC_TEXTS, SYNTHETIC_TOKENS = 1024, 256


def prune(
    job: PruneJob,
    examples: Sequence[Example] | None,
    *,
    progress: Progress,
    measure_speed: MeasureSpeed | None = None,
) -> Done:
    """Writes the folder. An interrupted job goes on where it was when it is run again with the same texts, or cache.

    Args:
        examples: what to go by, to recover with and to judge by; None: what the model writes by itself.

    Raises PenstockError naming what is wrong, among it a result that fails its gate, of which nothing is written unless
    forced; KeyboardInterrupt after Ctrl-C.
    """
    check_target(job.output, force=job.force)
    device = training_device(job.device)
    parent = load_plain(job.model, device=device)
    stored = parent.module.dtype
    structure = structure_of(parent.module)
    check_targets(job, parent.module, structure)
    if parent.module.num_parameters() <= FLOAT32_PARAMETERS:
        parent.module.float()
    given = fingerprint_of(examples)
    with work_folder(job.output, _identity(job, parent, given)) as work:
        dataset = kept_dataset(work.path, given, partial(_dataset, job, parent, examples, progress))
        if job.cache is not None:
            job = replace(job, source=f"{dataset.examples} {job.source}")
        plan = make_plan(job, parent, structure, dataset.train, work, measure_speed, progress)
        student = load_plain(str(plan.folder), device=device).module
        recovery = _recover(job, student, parent, dataset, work)
        student.to(stored)
        parameters = student.num_parameters()
        with new_folder(job.output, force=job.force, expected_bytes=parameters * stored.itemsize) as staging:
            save_model(student, parent, staging)
            before, after = _judge([plan.folder, staging], parent, dataset, progress)
            done = Done(
                parent_size=structure.size,
                size=plan.size,
                records=plan.records,
                before=before,
                after=after,
                parameters=parameters,
                parent_parameters=parent.module.num_parameters(),
                bytes=parameters * stored.itemsize,
                parent_bytes=parent.module.num_parameters() * stored.itemsize,
                texts=min(MEASURED, len(dataset.held_out)),
                trained=len(dataset.train),
                recovery=recovery,
            )
            if recovery is not None and _is_worse(after, before):
                save_model(load_plain(str(plan.folder)).module.to(stored), parent, staging)
                (before,) = _judge([staging], parent, dataset, progress)  # as it is stored
                done = replace(done, before=before, spoilt=True)
            _refuse(job, done, work.path)
            if measure_speed is not None:
                progress("time", 0, 1)
                path = parent.path
                del parent, student  # what is timed has the memory to itself
                done = replace(done, speed=measure_speed({PARENT: path, PRUNED: staging}))
                _refuse(job, done, work.path)
            _write_reports(staging, job, done)
    return done


def _dataset(
    job: PruneJob, parent: PlainModel, examples: Sequence[Example] | None, progress: Progress
) -> Dataset:
    return dataset_of(
        parent,
        examples,
        max_tokens=job.max_tokens,
        held_out_share=HELD_OUT_SHARE,
        synthetic=(SYNTHETIC_TEXTS, SYNTHETIC_TOKENS),
        progress=progress,
    )


def _refuse(job: PruneJob, done: Done, work: Path) -> None:
    """Raises CompressError where something fails."""
    failed = failures(job, done)
    if failed and not job.force:
        longer = "Recover longer"
        if done.spoilt:
            longer = f"Recovery made it worse: remove {work} and give a lower --learning-rate"
        raise CompressError(
            f"{job.model} pruned fails its gate and is not written: {'; '.join(failed)}. {longer}, cut out "
            "less, or give --force to have it all the same (what is done so far is kept for that)."
        )


def _is_worse(one: Comparison, other: Comparison) -> bool:
    """Whether `one` is further from the parent, or its logits are no numbers."""
    return one.kl.value > other.kl.value or math.isnan(one.kl.value)


def _recover(
    job: PruneJob, student: Any, parent: PlainModel, dataset: Dataset, work: WorkFolder
) -> TrainingReport | None:
    if job.recovery_steps == 0:
        return None
    return recover(
        student,
        parent.module,
        dataset.train,
        dataset.held_out[:WATCHED],
        work=work,
        steps=job.recovery_steps,
        minutes=job.recovery_minutes,
        learning_rate=job.learning_rate,
        gradient_checkpointing=job.gradient_checkpointing,
    )


def _judge(
    folders: Sequence[Path], parent: PlainModel, dataset: Dataset, progress: Progress
) -> list[Comparison]:
    """The models in `folders` beside the parent, all in the dtype that the parent is computed in."""
    dtype = next(name for name, dtype in DTYPES.items() if dtype == parent.module.dtype)
    device = str(parent.module.device)
    modules = [load_plain(str(folder), dtype=dtype, device=device).module for folder in folders]
    return compare_all(
        [PlainScorer(module, "the pruned model") for module in modules],
        PlainScorer(parent.module, "the parent"),
        dataset.held_out[:MEASURED],
        progress=lambda done, of: progress("judge", done, of),
    )


def _write_reports(folder: Path, job: PruneJob, done: Done) -> None:
    (folder / REPORT).write_text(json.dumps(as_dict(job, done), indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text("\n".join(card(job, done)) + "\n", encoding="utf-8")
    if done.recovery is not None:
        shutil.copy(done.recovery.log, folder / "training.jsonl")


def _identity(job: PruneJob, parent: PlainModel, given: str) -> dict[str, Any]:
    """What makes it the same job. Not the gate, so that what failed it is written by force without being done again; not the
    learning rate: one that was too high is lowered on the way."""
    asked = asdict(job)
    for name in ("output", "source", "learning_rate", "most_kl", "most_perplexity_change", "device", "force"):
        del asked[name]
    return {
        **asked,
        "model": parent.fingerprint,
        "texts": job.cache or given,
    }
