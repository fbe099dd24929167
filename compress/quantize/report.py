"""What was done to a model, layer by layer, and what it costs: as JSON, as the page of the folder, as a few lines."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..evaluate.speed import Speed
from .job import Done, QuantizeJob
from .layer import LayerRecord
from .precision import AS_STORED

# A ratio of speeds that is no difference, on machines that are never quite still.
SAME_SPEED = 0.03
STORED, QUANTIZED = "as stored", "quantized"


def as_dict(job: QuantizeJob, done: Done) -> dict[str, Any]:
    """Plain values for quantization.json."""
    return {
        "model": job.model,
        "scheme": job.scheme,
        "group_size": job.group,
        "kv": "int8" if job.kv else None,
        "calibration": {"source": job.source, "tokens": done.tokens, "context": job.context},
        "gate": {"most_kl": job.most_kl, "least_agreement": job.least_agreement, "texts": done.texts},
        "passed": not failures(job, done),
        "comparison": asdict(done.comparison),
        "bytes": done.bytes,
        "stored_bytes": done.stored_bytes,
        "speed": {name: [asdict(speed) for speed in speeds] for name, speeds in done.speed.items()},
        "layers": [asdict(record) for record in done.records],
        "sensitivity": [
            {"layers": cost.layers, "precision": str(cost.precision), "kl": cost.kl, "bytes": cost.bytes}
            for cost in done.costs
        ],
    }


def failures(job: QuantizeJob, done: Done) -> list[str]:
    """What of the gate the result does not hold to."""
    found = []
    kl, agreement = done.comparison.kl.value, done.comparison.agreement.value
    # A model whose logits are not numbers fails: written so that nan does.
    if not kl <= job.most_kl:
        found.append(f"its KL divergence is {kl:.4f} nats per token, above {job.most_kl:g}")
    if not agreement >= job.least_agreement:
        found.append(f"it agrees on {agreement:.2%} of the tokens, below {job.least_agreement:.2%}")
    return found


def summary(job: QuantizeJob, done: Done) -> Iterator[str]:
    """For the terminal."""
    comparison = done.comparison
    yield f"{job.output}: {_precisions(done)}; {done.bytes / 1e6:.1f} MB, was {done.stored_bytes / 1e6:.1f} MB"
    yield (
        f"beside the model as stored, on {done.texts} texts it was not calibrated on: "
        f"KL {comparison.kl.value:.4f}, the same token {comparison.agreement.value:.2%}, "
        f"perplexity {comparison.perplexity.value:.4g} ({comparison.perplexity_change.value:+.2%})"
    )
    yield from _speeds(done)
    yield from _departures(done)


def page(job: QuantizeJob, done: Done) -> Iterator[str]:
    """Markdown, for the folder's README.md."""
    comparison = done.comparison
    yield f"# {job.output.name}"
    yield ""
    yield f"`{job.model}`, quantized by `penstock quantize --scheme {job.scheme}`: {_precisions(done)}."
    if job.kv:
        yield "Keys and values are to be stored in INT8, by a scale for each token and head."
    for failure in failures(job, done):
        yield f"**Below the gate, and written by force: {failure}.**"
    yield ""
    yield f"| on {done.texts} texts it was not calibrated on | value | 95 % interval |"
    yield "|---|---|---|"
    for name, estimate, form in (
        ("KL divergence from the model as stored, nats per token", comparison.kl, ".5f"),
        ("agreement of the most likely token", comparison.agreement, ".2%"),
        ("perplexity", comparison.perplexity, ".4g"),
        ("perplexity against the model as stored", comparison.perplexity_change, "+.2%"),
    ):
        yield f"| {name} | {estimate.value:{form}} | {estimate.low:{form}} to {estimate.high:{form}} |"
    yield ""
    yield (
        f"Weights: {done.bytes / 1e6:.1f} MB, as stored {done.stored_bytes / 1e6:.1f} MB. "
        f"Calibrated on {done.tokens} tokens ({job.source})."
    )
    for line in _speeds(done):
        yield f"- {line}"
    for line in _departures(done):
        yield f"- {line}"
    yield ""
    yield (
        "| layer | precision | method | scale moved before | error of the weight | of the output | "
        "of the output by rounding to nearest | KL of its group alone |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for record in done.records:
        yield _row(record)
    yield ""
    yield "Errors are |wrong - right| / |right|, on texts calibrated on. All figures are also in `quantization.json`."


def _row(record: LayerRecord) -> str:
    used = record.used if record.used == record.asked else f"{record.used}, asked {record.asked}"
    figures = (record.weight_error, record.output_error, record.nearest_error, record.kl)
    cells = ["" if figure is None else f"{figure:.5f}" for figure in figures]
    method = record.method or record.reason
    return f"| {record.name} | {used} | {method} | {record.migration} | " + " | ".join(cells) + " |"


def _precisions(done: Done) -> str:
    counts = Counter(record.used for record in done.records)
    return ", ".join(
        f"{count} layer{'s' * (count > 1)} {used if used == AS_STORED else f'in {used}'}"
        for used, count in counts.most_common()
    )


def _departures(done: Done) -> Iterator[str]:
    """What was not done as it was asked, and why."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for record in done.records:
        if record.used != record.asked or record.reason:
            kinds.setdefault((record.used, record.asked, record.reason), []).append(record.name)
    for (used, asked, reason), names in kinds.items():
        instead = "" if used == asked else f" instead of {asked}"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {used}{instead}: {reason}"


def _speeds(done: Done) -> Iterator[str]:
    if not done.speed:
        return
    for stored, quantized in zip(done.speed[STORED], done.speed[QUANTIZED], strict=True):
        yield (
            f"batch {quantized.batch}: {_verdict(quantized)} ({quantized.ratio.value:.2f}x; "
            f"{quantized.tokens_per_second.value:.0f} tokens/s, as stored {stored.tokens_per_second.value:.0f})"
        )


def _verdict(speed: Speed) -> str:
    if abs(speed.ratio.value - 1) <= SAME_SPEED:
        return "as fast as the model as stored"
    return "faster than the model as stored" if speed.ratio.value > 1 else "SLOWER than the model as stored"
