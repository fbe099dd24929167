"""Precisions layer by layer under a budget: what each layer costs alone, a choice, and what the chosen ones cost together.

What layers cost one by one does not add up to what they cost together. So a choice is rounded and measured, and where it is
over the budget, the next one is made with less of it, until one is within.
"""

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from ..quantized_tensor import BITS, QuantizedTensor
from .mixed import choose
from .precision import Precision, fitting
from .sensitivity import Cost, block_costs, divergences
from .stream import Ending, in_float32
from .whole import Quantized, Quantizer, head_precision

# Of the budget: other texts, by which the result is judged, cost some more or less (measured: 0.0060 and 0.0074 nats).
AIM = 0.8
# Of what was spent, where a choice was over the budget by less than this.
LESS = 0.95


def within(quantizer: Quantizer, budget: float, group: int) -> tuple[Quantized, list[Cost]]:
    """As few bytes as AIM of `budget` allows, of KL on the texts chosen by; and what every group of layers costs alone."""
    costs = costs_of(quantizer, group)
    stored = {
        cost.layers: sum(quantizer.linears[name].weight.nbytes for name in cost.layers) for cost in costs
    }
    chosen: dict[tuple[str, ...], Precision | None] = {}
    aim = allowed = AIM * budget
    # What choices cost is kept, so that a job that goes on needs no blocks of those that are over the budget.
    kept = quantizer.work / "choices.json"
    known: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    while True:
        before, chosen = chosen, choose(costs, stored, allowed)
        if chosen == before:  # with less of the budget, too: nothing is left but not to round
            chosen = dict.fromkeys(stored)
        precisions = {name: precision for names, precision in chosen.items() for name in names}
        files = quantizer.files_of(precisions)
        choice = f"{files[-1].stem}, head {precisions.get(quantizer.head_name or '')}"
        if known.get(choice, 0.0) <= aim:
            _keep_only(files)
            done = quantizer.quantize(precisions)
            known[choice] = done.selection_kl
            _write(kept, known)
            if done.selection_kl <= aim or not any(chosen.values()):
                break
        spent = sum(cost.kl for cost in costs if chosen[cost.layers] == cost.precision)
        allowed = spent * min(LESS, aim / known[choice])
    alone = {(name, str(cost.precision)): cost.kl for cost in costs for name in cost.layers}
    for record in done.records:
        record.kl = alone.get((record.name, record.used))
    return done, costs


@torch.no_grad()
def costs_of(quantizer: Quantizer, group: int) -> list[Cost]:
    """Of every group of linears that read one tensor, in every scheme."""
    passage, judges, progress = quantizer.calibration, quantizer.selection, quantizer.progress
    calibrating, selecting = passage.start, judges.start
    steps = len(passage.blocks) + 1
    costs: list[Cost] = []

    def candidates(width: int) -> list[Precision]:
        return list(dict.fromkeys(fitting(scheme, group, width) for scheme in BITS))

    for index, block in enumerate(passage.blocks):
        progress("sensitivity", index, steps)
        kept = quantizer.work / f"costs-{index}.json"
        if not kept.is_file():
            found = block_costs(passage, judges, index, calibrating, selecting, candidates)
            _write(kept, [astuple(cost) for cost in found])
        costs += _read(kept)
        with in_float32(list(block.parameters())):
            calibrating = passage.through(index, calibrating)
            selecting = judges.through(index, selecting)
    progress("sensitivity", steps - 1, steps)
    if quantizer.head_name in quantizer.linears:
        weight = quantizer.linears[quantizer.head_name].weight.detach()
        tried = list(dict.fromkeys(head_precision(scheme) for scheme in BITS))
        endings = [
            Ending(selecting, quantizer.head_of(QuantizedTensor.nearest(weight, precision.scheme)))
            for precision in tried
        ]
        kls = divergences(judges, Ending(selecting), endings)
        costs += [
            Cost((quantizer.head_name,), precision, kl, precision.bytes_of(*weight.shape))
            for precision, kl in zip(tried, kls, strict=True)
        ]
    progress("sensitivity", steps, steps)
    return costs


def _keep_only(files: list[Path]) -> None:
    """Of all blocks that were kept: those of other choices take as much of the disk each as the result."""
    for other in set(files[0].parent.glob("block-*")) - set(files):
        other.unlink()


def _write(file: Path, values: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(values), encoding="utf-8")
    part.replace(file)


def _read(file: Path) -> list[Cost]:
    return [
        Cost(tuple(layers), Precision(*precision), kl, size)
        for layers, precision, kl, size in json.loads(file.read_text(encoding="utf-8"))
    ]
