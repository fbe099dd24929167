"""The README.md of a student's folder: what it was made of, how, and what was measured."""

from ..evaluate import Estimate
from .job import Distilled, DistillJob


def card(job: DistillJob, done: Distilled, parameters: int, teacher_parameters: int) -> str:
    """Markdown. `parameters`: of the student."""
    comparison, worth = done.measured.comparison, done.measured.acceptance
    training, data = done.training, done.dataset
    rows = [
        ("perplexity", _number(comparison.perplexity)),
        ("perplexity of the teacher", _number(comparison.reference_perplexity)),
        ("KL(teacher, student), nats per token", _number(comparison.kl)),
        ("as a draft model, tokens that stand: greedy (the same most likely token)", _percent(worth.greedy)),
        ("as a draft model, tokens that stand: sampled at temperature 1", _percent(worth.sampled)),
    ]
    losses = [
        (name, training.held_out_before[name], value)
        for name, value in training.held_out.items()
        if name != "loss"
    ]
    return "\n".join(
        [
            f"# {job.output.name}",
            "",
            f"A student of {parameters:,} parameters ({_origin(job)}), distilled from `{job.teacher}` "
            f"({teacher_parameters:,} parameters) by `penstock distill`. It has the teacher's tokenizer and chat template.",
            "",
            "## Measured",
            "",
            f"On {done.measured.texts} held-out texts, {comparison.kl.count} tokens that the model writes, with 95 % "
            "intervals.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            "## Data",
            "",
            f"{job.data}: {data.examples} examples, {data.duplicates} of them the same as another, {data.unusable} with "
            f"nothing to learn within {job.max_tokens} tokens. {len(data.train)} texts to learn from, {len(data.held_out)} "
            "held out.",
            "",
            "## Training",
            "",
            f"{_loss(job)}; {training.steps} steps, {training.tokens:,} tokens (padding included), "
            f"{training.seconds / 60:.1f} minutes; highest learning rate "
            f"{job.training.learning_rate:g}. Every step is in `training.jsonl`.",
            "",
            "| held-out, mean per token | before | after |",
            "|---|---|---|",
            *(
                f"| {name} | {before:.4f} | {after:.4f} |"
                for name, before, after in losses
                if before is not None
            ),
            "",
            "## Limits",
            "",
            "It was measured on texts like those it learnt from; on others it may be further from its teacher. What its "
            "teacher gets wrong it has learnt too.",
            "",
        ]
    )


def _origin(job: DistillJob) -> str:
    if job.student is not None:
        return f"begun as `{job.student}`"
    if job.layers is not None:
        return f"begun as {job.layers} of the teacher's layers, evenly spaced"
    return "begun from fresh weights"


def _loss(job: DistillJob) -> str:
    loss = job.loss
    text = f"Loss: {loss.kind}"
    if loss.kind == "jsd":
        text += f" (beta {loss.beta:g})"
    if loss.temperature != 1:
        text += f" at temperature {loss.temperature:g}"
    if loss.cross_entropy:
        text += f", {100 * loss.cross_entropy:g} % cross-entropy"
    if loss.hidden:
        text += f", hidden states weighted {loss.hidden:g}"
    if job.on_policy:
        text += f", {100 * job.on_policy:g} % of the steps by the student's own answers"
    return text


def _number(measured: Estimate) -> str:
    return f"{measured.value:.4g} [{measured.low:.4g}, {measured.high:.4g}]"


def _percent(measured: Estimate) -> str:
    return f"{100 * measured.value:.1f} % [{100 * measured.low:.1f}, {100 * measured.high:.1f}]"
