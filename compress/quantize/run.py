"""`penstock quantize`: texts divided, layers rounded, the folder written, judged as it is served, and kept if it passes.

Knows no command line, and neither engine nor cache: texts and the measuring of speed are handed in.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CompressError
from ...kernels.cpu.native.library import library
from ...kernels.dispatch import choose_backend
from ...models.loading import LoadedModel, load_model
from ...models.quantized_experts import AS_STORED as AS_STORED_EXPERTS
from ..compressed_tensors import write_compressed_tensors
from ..distill.dataset import Dataset
from ..evaluate import Comparison, PlainScorer, ServedScorer, compare
from ..evaluate.speed import Speed
from ..folder import check_target, new_folder, work_folder
from ..kept_texts import fingerprint_of, kept_dataset
from ..own_texts import dataset_of
from ..plain_model import PlainModel, load_plain
from ..quantized_tensor import Scheme
from ..texts import Example, Tokens, tokenize
from .budget import within
from .calibration import HELD_BACK_SHARE, divide, judged_by
from .job import Done, QuantizeJob
from .layer import LayerRecord
from .precision import Precision
from .report import QUANTIZED, STORED, as_dict, failures, page
from .sensitivity import Cost
from .whole import EXPERTS, Progress, Quantized, Quantizer, linears_of

# Written by the model itself, where no texts are given.
SYNTHETIC_TEXTS, SYNTHETIC_TOKENS = 384, 128
# Up to this many parameters (a gigabyte) the model as stored is computed in float32 to judge by: no rounding of its own is
# then in the way. A larger one is computed in the dtype it is stored in.
FLOAT32_PARAMETERS = 1 << 28
REPORT = "quantization.json"
# What each pass over a model counts as the same work. To be raised whenever other integers come out of the same input.
METHOD = 4

# From folders by name, to their speeds.
MeasureSpeed = Callable[[Mapping[str, Path]], Mapping[str, Sequence[Speed]]]


def quantize(
    job: QuantizeJob,
    examples: Sequence[Example] | None,
    *,
    progress: Progress,
    judges: Sequence[Example] | None = None,
    measure_speed: MeasureSpeed | None = None,
) -> Done:
    """Writes the folder. An interrupted job goes on where it was when it is run again with the same texts, or cache.

    Args:
        examples: what to calibrate on and to judge by; None: what the model writes by itself.
        judges: what to judge by in the place of a part of them.

    Raises PenstockError naming what is wrong, among it a result that fails its gate, of which nothing is written unless
    forced.
    """
    check_target(job.output, force=job.force)
    _check_device(job)
    model = load_plain(job.model)
    linears_of(model.module)  # what cannot be quantized is refused before anything is made
    given = fingerprint_of(examples)
    with work_folder(job.output, _identity(job, model, given)) as work:
        dataset = kept_dataset(work.path, given, partial(_dataset, job, model, examples, progress))
        if job.cache is not None:
            job = replace(job, source=f"{dataset.examples} {job.source}")
        texts = divide(dataset.train, dataset.held_out)
        if judges is not None:
            texts = judged_by(texts, tokenize(model.tokenizer, judges, job.context))
        quantizer = Quantizer(model, texts, work.path, progress)
        costs: Sequence[Cost] = ()
        if job.scheme == "auto":
            quantized, costs = within(quantizer, job.most_kl, job.group)
        else:
            asked = Precision(job.scheme, job.group if job.scheme == "w4a16" else None)
            quantized = quantizer.quantize(quantizer.uniform(job.scheme, job.group), asked)
        stored_bytes = _weight_bytes(model.path)
        expected = stored_bytes - quantized.saved_bytes
        with new_folder(job.output, force=job.force, expected_bytes=expected) as staging:
            served = _write(job, model, quantized, staging)
            done = Done(
                comparison=_judge(job, model, served, texts.held_back, progress),
                records=quantized.records,
                costs=costs,
                bytes=_weight_bytes(staging),
                stored_bytes=stored_bytes,
                tokens=sum(len(text.ids) for text in texts.calibration),
                texts=len(texts.held_back),
            )
            if not job.force:
                _refuse(job, failures(job, done))
            if measure_speed is not None:
                stored = model.path
                del model, quantizer, quantized, served  # what is timed has the memory to itself
                done = replace(done, speed=measure_speed({STORED: stored, QUANTIZED: staging}))
            (staging / REPORT).write_text(json.dumps(as_dict(job, done), indent=1) + "\n", encoding="utf-8")
            (staging / "README.md").write_text("\n".join(page(job, done)) + "\n", encoding="utf-8")
    return done


def _dataset(
    job: QuantizeJob, model: PlainModel, examples: Sequence[Example] | None, progress: Progress
) -> Dataset:
    dataset = dataset_of(
        model,
        examples,
        max_tokens=job.context,
        held_out_share=HELD_BACK_SHARE,
        synthetic=(SYNTHETIC_TEXTS, SYNTHETIC_TOKENS),
        progress=progress,
    )
    divide(dataset.train, dataset.held_out)  # too few are refused before they are kept
    return dataset


def _write(job: QuantizeJob, model: PlainModel, quantized: Quantized, folder: Path) -> LoadedModel:
    """The model as it is served from the folder; what that made of experts is noted in the records."""
    # Of a mixture's experts nothing is known that a choice layer by layer could go by.
    experts = None if job.scheme == "auto" or not _has_experts(quantized.records) else job.scheme
    with _in_place(model.module, quantized.changed):
        write_compressed_tensors(
            folder,
            model,
            quantized.layers,
            output_layer=None if quantized.head is None else quantized.head.scheme,
            experts=experts,
            int8_kv=job.kv,
        )
    served = load_model(str(folder), device=job.device)
    _report_experts(quantized.records, served.experts, experts)
    return served


def _refuse(job: QuantizeJob, failed: list[str]) -> None:
    """Raises CompressError where something failed."""
    remedy = "smaller groups, more bits, --scheme auto, or other texts"
    if job.scheme == "auto":
        remedy = "more texts, or a larger budget"
    if failed:
        raise CompressError(
            f"{job.model} in {job.scheme} fails its gate and is not written: {' and '.join(failed)}. "
            f"Try {remedy}; or give --force to have it all the same."
        )


def _check_device(job: QuantizeJob) -> None:
    """Raises CompressError where the result could not be judged in the end."""
    try:
        backend = choose_backend(job.device)
    except ValueError as error:
        raise CompressError(str(error), param="device") from error
    if job.kv and backend.kind == "cpu" and library() is None:
        raise CompressError(
            "--kv int8 is judged by what serves it, on a CPU the C kernels (x86-64 with AVX2 or AVX-512, a C compiler), "
            "which are not here; leave it out, or use a GPU.",
            param="kv",
        )


def _judge(
    job: QuantizeJob,
    model: PlainModel,
    served: LoadedModel,
    texts: list[Tokens],
    progress: Progress,
) -> Comparison:
    """What the folder answers, computed by the kernels that serve it, beside the model as it is."""
    if model.module.num_parameters() <= FLOAT32_PARAMETERS:
        model.module.float()
    try:
        scorer = ServedScorer(served, "the quantized model", torch.int8 if job.kv else None)
    except ValueError as error:
        raise CompressError(f"--kv int8 is judged by what serves it: {error}", param="kv") from error
    return compare(
        scorer,
        PlainScorer(model.module, job.model),
        texts,
        progress=lambda done, of: progress("judge", done, of),
    )


def _has_experts(records: Sequence[LayerRecord]) -> bool:
    return any(record.reason == EXPERTS for record in records)


def _report_experts(records: Sequence[LayerRecord], served: Mapping[str, int], scheme: Scheme | None) -> None:
    """What loading the folder made of experts, which are rounded then, where ours compute what they compute."""
    for record in records:
        if record.reason == EXPERTS and scheme is not None:
            record.asked = scheme
            if AS_STORED_EXPERTS in served:
                record.reason = "transformers computes these experts in a way of their own"
            else:
                record.used, record.method, record.reason = scheme, "nearest, when it is loaded", ""


@contextmanager
def _in_place(module: Any, changed: Mapping[str, Tensor]) -> Iterator[None]:
    parameters = {name: module.get_parameter(name) for name in changed}
    stored = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, data in changed.items():
            parameters[name].data = data
        yield
    finally:
        for name, data in stored.items():
            parameters[name].data = data


def _identity(job: QuantizeJob, model: PlainModel, given: str) -> dict[str, Any]:
    """What makes it the same job: not the gate, so that one that failed is written by force without being done again."""
    return {
        "method": METHOD,
        "model": model.fingerprint,
        "texts": job.cache or given,
        "context": job.context,
        "scheme": job.scheme,
        "group": job.group,
    }


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
