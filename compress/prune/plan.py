"""Decides on a size and cuts to it, once a job: the cut model waits in the work folder, to recover and to compare with."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import CompressError
from ..companion_files import copy_companions
from ..folder import WorkFolder
from ..own_texts import up_to
from ..plain_model import PlainModel, load_plain
from ..texts import Tokens
from .cut import Kept, cut
from .job import LayerRecord, MeasureSpeed, Progress, PruneJob
from .price import Price, parameters_of, price_of_time, probes
from .pruner import Pruner
from .structure import Size, Structure
from .targets import asked_size, cheapest_loss, check_size, check_speed_up

# Of logits, |wrong - right| / |right|: rounding is below it, anything computed in another way is not.
SAME = 1e-3
# Importance settles with far fewer tokens than it takes to recover.
CALIBRATION_TOKENS = 65_536
SELECTION_TOKENS = 4_096


@dataclass(frozen=True, slots=True)
class Plan:
    """Attributes:
    folder: the model as cut, before any recovery.
    """

    folder: Path
    size: Size
    records: Sequence[LayerRecord]


def check_targets(job: PruneJob, module: Any, structure: Structure) -> None:
    """Refuses, before any work is done, what this model cannot be cut to. Raises CompressError."""
    whole = structure.size
    if job.size is not None:
        check_size(whole, parameters_of(module, structure), job.size)
    elif job.speed_up is None:
        asked_size(whole, mlp=job.mlp, kv_groups=job.kv_groups, layers=job.layers)


def make_plan(
    job: PruneJob,
    parent: PlainModel,
    structure: Structure,
    texts: Sequence[Tokens],
    work: WorkFolder,
    measure_speed: MeasureSpeed | None,
    progress: Progress,
) -> Plan:
    """From the work folder, if it was made before.

    Args:
        texts: to go by, none of those held out.

    Raises CompressError for a speed-up that cannot be had, and where the cut model, read back, is not the one in memory.
    """
    folder, seen = work.path / "cut", work.path / "moments"
    notes = folder / "plan.json"
    if not notes.is_file():
        # The last texts for comparing, so that what importance goes by is not what it is judged by.
        selection = up_to(texts[::-1], SELECTION_TOKENS)
        calibration = up_to(texts[: max(1, len(texts) - len(selection))], CALIBRATION_TOKENS)
        pruner = Pruner(parent.module, structure, calibration, selection, seen, progress)
        size = _size(job, parent, structure, pruner, work, measure_speed)
        small, records = pruner.cut_to(size)
        new = work.path / "cut.new"
        with _gone_afterwards(new):
            save_model(small, parent, new)
            _check_read_back(new, small, selection[0])
            (new / notes.name).write_text(
                json.dumps({"size": asdict(size), "layers": [asdict(record) for record in records]})
            )
            os.replace(new, folder)
        shutil.rmtree(seen, ignore_errors=True)  # there is none where only layers went
    kept = json.loads(notes.read_text())
    return Plan(folder, Size(**kept["size"]), [LayerRecord(**record) for record in kept["layers"]])


def save_model(module: Any, parent: PlainModel, folder: Path) -> None:
    """As a folder of its own, with the parent's tokenizer."""
    module.save_pretrained(folder)
    copy_companions(parent.path, folder)


def _size(
    job: PruneJob,
    parent: PlainModel,
    structure: Structure,
    pruner: Pruner,
    work: WorkFolder,
    measure_speed: MeasureSpeed | None,
) -> Size:
    whole = structure.size
    if job.size is not None:
        price = parameters_of(parent.module, structure)
        return cheapest_loss(whole, price, job.size, pruner.kl)
    if job.speed_up is not None:
        assert measure_speed is not None, "whoever asks for a speed-up can measure speed"
        price = _price_of_time(parent, structure, work, measure_speed)
        check_speed_up(whole, price, job.speed_up)
        return cheapest_loss(whole, price, 1 / job.speed_up, pruner.kl)
    return asked_size(whole, mlp=job.mlp, kv_groups=job.kv_groups, layers=job.layers)


def _price_of_time(
    parent: PlainModel, structure: Structure, work: WorkFolder, measure_speed: MeasureSpeed
) -> Price:
    """Measured at batch 1: of models of four sizes that compute nothing of sense."""
    with _gone_afterwards(work.path / "probes") as folder:
        folders = {name: folder / name for name in probes(structure.size)}
        for name, size in probes(structure.size).items():
            device = parent.module.device
            kept = Kept(torch.arange(size.channels, device=device), torch.arange(size.groups, device=device))
            probe = cut(parent.module, structure, [(index, kept) for index in range(size.layers)])
            save_model(probe, parent, folders[name])
        speeds = measure_speed(folders)
    return price_of_time(structure.size, {name: 1 / own[0].ratio.value for name, own in speeds.items()})


@contextmanager
def _gone_afterwards(folder: Path) -> Iterator[Path]:
    """What a full disk or an interruption leaves half-written takes room, and may be in the way of the next run."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def _check_read_back(folder: Path, module: Any, text: Tokens) -> None:
    again = load_plain(str(folder), device=str(module.device)).module
    ids = torch.tensor([text.ids], device=module.device)
    right, found = (m(input_ids=ids, use_cache=False).logits.float() for m in (module, again))
    error = float((found - right).norm() / right.norm())
    if not error < SAME:
        raise CompressError(
            f"{type(module).__name__} cannot be pruned: once written and read back it computes something else (by "
            f"{error:.1%}); its layers depend on something that its config does not tell of each of them."
        )
