"""Quantizes a whole model, block after block, each given what the rounded ones before it make of the calibration texts.

What is done is kept in a folder as it is done: the same model, texts and precisions go on from there, to the same bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CompressError
from ..plain_model import PlainModel, blocks
from ..quantized_tensor import QuantizedTensor, Scheme
from .block import quantize_block
from .calibration import Texts
from .drift import Streams
from .inputs import linears, observe
from .layer import BlockResult, KeptLayers, LayerRecord, load, save, through_installed
from .precision import AS_STORED, Precision, fitting
from .rounding import round_activation
from .sensitivity import divergences
from .stream import Ending, Passage, in_float32

Progress = Callable[[str, int, int], None]
# Why a layer that could have been rounded was not.
CHOSEN = "never called on the calibration texts, or too sensitive for the budget"
# What becomes of those is seen when the folder is loaded.
EXPERTS = "experts are stored as they are"


@dataclass(slots=True)
class Quantized:
    """A model's layers after rounding; names are those in the model.

    Attributes:
        layers: by the name of the linear; changed: other parameters that are not as they were, by name.
        records: of every linear layer, in the model's order.
        head: the output layer as Penstock rounds it when it loads the model; files have it as stored, which is all that vLLM
            takes.
        saved_bytes: by how much its files are smaller than those of the model.
        selection_kl: from the model as it is, on the texts that precisions are chosen by, in float32, nats per token.
    """

    layers: KeptLayers
    changed: dict[str, Tensor]
    records: list[LayerRecord]
    head: QuantizedTensor | None = None
    selection_kl: float = 0.0
    saved_bytes: int = 0


class Quantizer:
    """Of one model by one set of texts.

    Args:
        work: a folder for what is done.
        progress: told what is being done, how many parts of that are done, and of how many.

    Raises CompressError where the model has nothing to quantize, or is not built as we take it to be.
    """

    def __init__(self, model: PlainModel, texts: Texts, work: Path, progress: Progress) -> None:
        self._module = model.module
        self.work, self.progress = work, progress
        self.calibration = Passage(model.module, texts.calibration)
        self.selection = Passage(model.module, texts.selection)
        self.head: Any = model.module.get_output_embeddings()
        self.head_name = _name_of(model.module, self.head)
        self.linears = linears_of(model.module)

    def uniform(self, scheme: Scheme, group: int) -> dict[str, Precision | None]:
        """One scheme for all, as far as each takes it; in 4 bits with zero points where all in the blocks are of one kind,
        as transformers reads zero points from no other folder."""
        inside = {
            name: fitting(scheme, group, linear.weight.shape[1])
            for name, linear in self.linears.items()
            if name != self.head_name
        }
        kinds = set(inside.values())
        if len(kinds) == 1 and (only := kinds.pop()).group is not None:
            inside = dict.fromkeys(inside, replace(only, has_zeros=True))
        return {name: inside.get(name, head_precision(scheme)) for name in self.linears}

    @torch.no_grad()
    def quantize(
        self, precisions: Mapping[str, Precision | None], asked: Precision | None = None
    ) -> Quantized:
        """Every linear to its precision, None as stored. `asked`: what was wanted of all of them, for the report."""
        calibration, straight = self.calibration.start, self.calibration.start
        selection, parent = self.selection.start, self.selection.start
        makes_up = any(precision is not None and precision.makes_up for precision in precisions.values())
        done = Quantized(KeptLayers(), {}, [])
        done.saved_bytes = sum(
            linear.weight.nbytes - precision.bytes_of(*linear.weight.shape)
            for name, linear in self.linears.items()
            if name != self.head_name and (precision := precisions.get(name)) is not None
        )
        files = self.files_of(precisions)
        steps = len(self.calibration.blocks) + 1
        for index, (block, file) in enumerate(zip(self.calibration.blocks, files, strict=True)):
            self.progress("quantize", index, steps)
            prefix = f"{self.calibration.name}.{index}."
            own = self._own(index, precisions)
            streams = Streams(self.calibration, index, straight, calibration)
            result = _kept(file, partial(self._block, own, streams))
            with in_float32(list(block.parameters())):
                parent = self.selection.through(index, parent)
                if makes_up:
                    straight = self.calibration.through(index, straight)
            calibration = through_installed(self.calibration, index, calibration, result)
            selection = through_installed(self.selection, index, selection, result)
            _add(done, prefix, result, file)
        self.progress("quantize", steps - 1, steps)
        ending = Ending(selection)
        precision = precisions.get(self.head_name or "")
        if precision is not None:
            assert self.head_name is not None
            done.head = QuantizedTensor.nearest(self.head.weight.detach(), precision.scheme)
            done.records.append(self._head_record(precision, done.head))
            ending = Ending(selection, self.head_of(done.head))
        self.progress("quantize", steps, steps)
        done.selection_kl = divergences(self.selection, Ending(parent), [ending])[0]
        done.records = self._whole_report(done.records, asked)
        return done

    def files_of(self, precisions: Mapping[str, Precision | None]) -> list[Path]:
        """Where `quantize` keeps each block. What a block is given depends on the blocks before it, and so does its name."""
        so_far = blake2b(digest_size=8)
        files = []
        for index in range(len(self.calibration.blocks)):
            own = self._own(index, precisions)
            so_far.update(repr(list(own.items())).encode())
            files.append(self.work / f"block-{index}-{so_far.hexdigest()}.safetensors")
        return files

    def _own(self, index: int, precisions: Mapping[str, Precision | None]) -> dict[str, Precision | None]:
        prefix = f"{self.calibration.name}.{index}."
        return {name: precisions.get(prefix + name) for name in linears(self.calibration.blocks[index])}

    def _block(self, precisions: Mapping[str, Precision | None], streams: Streams) -> BlockResult:
        index, entering = streams.index, streams.rounded
        block: Any = self.calibration.blocks[index]
        parameters = list(block.parameters())
        dtype = parameters[0].dtype
        with in_float32(parameters):
            observed = observe(
                block,
                lambda number: self.calibration.step(index, number, entering[number]),
                [batch.keep for batch in self.calibration.batches],
            )
            return quantize_block(
                block,
                observed,
                precisions,
                lambda: self.calibration.step(index, 0, entering[0]) - entering[0],
                dtype,
                f"{self.calibration.name}.{index}",
                streams,
            )

    def _head_record(self, precision: Precision, tensor: QuantizedTensor) -> LayerRecord:
        weight = self.head.weight.detach().float()
        error = float((tensor.dequantized() - weight).norm() / weight.norm())
        return LayerRecord(
            self.head_name or "", str(precision), str(precision), method="nearest", weight_error=error
        )

    def head_of(self, tensor: QuantizedTensor) -> Callable[[Tensor], Tensor]:
        weight = tensor.dequantized()
        bias = None if self.head.bias is None else self.head.bias.float()

        def head(x: Tensor) -> Tensor:
            x = round_activation(x) if tensor.scheme == "w8a8" else x
            return nn.functional.linear(x, weight, bias)

        return head

    def _whole_report(self, records: list[LayerRecord], asked: Precision | None) -> list[LayerRecord]:
        """Those of linears that were rounded, and of every other matrix in the blocks, with why it was not."""
        known = {record.name: record for record in records}
        found = []
        for index, block in enumerate(self.calibration.blocks):
            for name, part in block.named_modules():
                path = f"{self.calibration.name}.{index}.{name}"
                if path in known:
                    found.append(known[path])
                elif reason := _why_not(part, path in self.linears):
                    found.append(LayerRecord(path, AS_STORED, reason=reason))
        if self.head_name is not None:
            head = known.get(self.head_name)
            found.append(head or LayerRecord(self.head_name, AS_STORED, reason=CHOSEN))
        for record in found:
            if asked is not None and record.used != str(asked):
                record.asked = str(asked)
                if record.name == self.head_name:
                    record.reason = "the output layer keeps 8 bits"
                elif record.used != AS_STORED:
                    columns = self.linears[record.name].weight.shape[1]
                    record.reason = f"{columns} columns are no whole groups of {asked.group}"
        return found


def linears_of(module: Any) -> dict[str, nn.Linear]:
    """All that can be rounded, by their names, in the model's order, the output layer last.

    Raises CompressError where there is none in the blocks.
    """
    name, layers = blocks(module)
    found = {
        f"{name}.{index}.{inner}": linear
        for index, block in enumerate(layers)
        for inner, linear in linears(block).items()
    }
    if not found:
        raise CompressError(
            f"{type(module).__name__} has no linear layers in its blocks to quantize; serve it as it is."
        )
    head = module.get_output_embeddings()
    head_name = _name_of(module, head)
    if head_name is not None and isinstance(head, nn.Linear):
        found[head_name] = head
    return found


def _name_of(module: nn.Module, part: nn.Module | None) -> str | None:
    return next((name for name, own in module.named_modules() if own is part), None)


def head_precision(scheme: Scheme) -> Precision:
    """Of the output layer, which answers depend on most directly: never below 8 bits."""
    return Precision("w8a8" if scheme == "w8a8" else "w8a16")


def _why_not(part: nn.Module, is_linear: bool) -> str:
    if is_linear:
        return CHOSEN
    if not any(parameter.dim() > 1 for parameter in part.parameters(recurse=False)):
        return ""
    kind = type(part).__name__
    if isinstance(part, nn.Linear) or kind.endswith("Router"):
        return "it picks experts, or has a single input or output"
    if kind.endswith("Experts"):
        return EXPERTS
    return f"{kind} is no linear layer"


def _kept(file: Path, make: Callable[[], BlockResult]) -> BlockResult:
    """What `make` makes, from the file if it was made before."""
    if not file.is_file():
        save(make(), file)
    return load(file)


def _add(done: Quantized, prefix: str, result: BlockResult, file: Path) -> None:
    for name in result.quantized:
        done.layers.add(prefix + name, file, name)
    done.changed |= {prefix + name: data for name, data in result.changed.items()}
    for record in result.records:
        record.name = prefix + record.name
    done.records += result.records
