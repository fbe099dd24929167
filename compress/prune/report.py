"""What was cut out of a model, layer by layer, what that saves and costs: as JSON, as the folder's page, as a few lines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ..evaluate import Estimate
from ..evaluate.speed import Speed
from .job import PARENT, PRUNED, Done, LayerRecord, PruneJob
from .targets import CHANNEL_MULTIPLE

_SPOILT = "Recovery left it further from its parent than it was as cut, so it is written as cut."


def failures(job: PruneJob, done: Done) -> list[str]:
    """What of the gate the result does not hold to."""
    found = []
    kl, change = done.written.kl.value, done.written.perplexity_change.value
    # A model whose logits are not numbers fails: written so that nan does.
    if not kl <= job.most_kl:
        found.append(f"its KL divergence is {kl:.4f} nats per token, above {job.most_kl:g}")
    if not change <= job.most_perplexity_change:
        found.append(f"its perplexity is {change:+.2%}, above {job.most_perplexity_change:+.2%}")
    if job.speed_up is not None and done.speed:  # which is measured last
        ratio = done.speed[PRUNED][0].ratio  # one sequence at a time
        if ratio.high < job.speed_up:
            found.append(
                f"it is {ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] as fast, below {job.speed_up:g}x"
            )
    return found


def as_dict(job: PruneJob, done: Done) -> dict[str, Any]:
    """Plain values for prune.json."""
    recovery = done.recovery
    return {
        "model": job.model,
        "asked": {
            name: getattr(job, name)
            for name in ("mlp", "kv_groups", "layers", "size", "speed_up")
            if getattr(job, name) is not None
        },
        "size": asdict(done.size),
        "parent_size": asdict(done.parent_size),
        "parameters": done.parameters,
        "parent_parameters": done.parent_parameters,
        "bytes": done.bytes,
        "parent_bytes": done.parent_bytes,
        "texts": {"source": job.source, "learnt_from": done.trained, "judged_by": done.texts},
        "gate": {"most_kl": job.most_kl, "most_perplexity_change": job.most_perplexity_change},
        "passed": not failures(job, done),
        "before_recovery": asdict(done.before),
        "after_recovery": asdict(done.after),
        "recovery": recovery
        and {
            "steps": recovery.steps,
            "tokens": recovery.tokens,
            "seconds": round(recovery.seconds, 1),
            "kept": not done.spoilt,
        },
        "speed": {name: [asdict(speed) for speed in speeds] for name, speeds in done.speed.items()},
        "layers": [asdict(record) for record in done.records],
    }


def summary(job: PruneJob, done: Done) -> Iterator[str]:
    """For the terminal."""
    yield f"{job.output}: {_cut(done)}; {_weights(done)}"
    written, other = done.written, done.after if done.spoilt else done.before
    when = "after" if done.spoilt else "before"
    yield (
        f"beside its parent, on {done.texts} held-out texts: KL {written.kl.value:.4f} "
        f"({when} recovery {other.kl.value:.4f}), the same token {written.agreement.value:.2%} "
        f"({other.agreement.value:.2%}), perplexity {written.perplexity_change.value:+.2%} "
        f"({other.perplexity_change.value:+.2%})"
    )
    if done.spoilt:
        yield f"{_SPOILT} A lower --learning-rate may help."
    yield from _speeds(job, done.speed)


def card(job: PruneJob, done: Done) -> Iterator[str]:
    """Markdown, for the folder's README.md."""
    yield f"# {job.output.name}"
    yield ""
    yield (
        f"`{job.model}` with less in it, by `penstock prune`: {_cut(done)}. An ordinary dense model of the same kind, with "
        "its parent's tokenizer and chat template."
    )
    for failure in failures(job, done):
        yield f"**Below the gate, and written by force: {failure}.**"
    yield ""
    yield f"Weights: {_weights(done)}."
    for line in _speeds(job, done.speed):
        yield f"- {line}"
    yield ""
    yield (
        f"| on {done.texts} held-out texts, {done.after.kl.count} tokens, with 95 % intervals | as cut | after recovery |"
    )
    yield "|---|---|---|"
    for name, before, after, form in (
        ("KL divergence from the parent, nats per token", done.before.kl, done.after.kl, ".4f"),
        ("same most likely token", done.before.agreement, done.after.agreement, ".2%"),
        ("perplexity", done.before.perplexity, done.after.perplexity, ".4g"),
        (
            "perplexity against the parent",
            done.before.perplexity_change,
            done.after.perplexity_change,
            "+.2%",
        ),
    ):
        yield f"| {name} | {_estimate(before, form)} | {_estimate(after, form)} |"
    yield ""
    yield f"Texts: {job.source}; {done.trained} to calibrate on and learn from, others held out. {_recovery(job, done)}"
    yield ""
    yield "| layer | MLP channels | of its output lost | key-value groups | of its output lost | KL of leaving it out |"
    yield "|---|---|---|---|---|---|"
    for record in done.records:
        yield _row(done, record)
    yield ""
    yield (
        "Of each layer those channels and groups went whose loss the others can make up for best, and the others were "
        "fitted to do so; what is lost is the share of the output's squared length that they could not make up for, on the "
        "texts calibrated on. All layers keep as many, as a config has one width, and channels go "
        f"{CHANNEL_MULTIPLE} at a time. All figures are also in `prune.json`."
    )


def _cut(done: Done) -> str:
    parts = [
        f"{now} of {was} {name}"
        for now, was, name in (
            (done.size.layers, done.parent_size.layers, "layers"),
            (done.size.channels, done.parent_size.channels, "MLP channels"),
            (done.size.groups, done.parent_size.groups, "key-value groups"),
        )
        if now < was
    ]
    return ", ".join(parts)


def _weights(done: Done) -> str:
    return (
        f"{done.parameters:,} of {done.parent_parameters:,} parameters ({done.parameters / done.parent_parameters:.0%}), "
        f"{done.bytes / 1e6:.1f} MB, was {done.parent_bytes / 1e6:.1f} MB"
    )


def _recovery(job: PruneJob, done: Done) -> str:
    if done.recovery is None:
        return "There was no recovery."
    return (
        f"Recovery: {done.recovery.steps} steps, {done.recovery.tokens:,} tokens (padding included), "
        f"{done.recovery.seconds / 60:.1f} minutes of learning the parent's distributions (forward KL), highest rate "
        f"{job.learning_rate:g}. Every step is in `training.jsonl`."
    ) + (f" {_SPOILT}" if done.spoilt else "")


def _row(done: Done, record: LayerRecord) -> str:
    kl = "" if record.left_out_kl is None else f"{record.left_out_kl:.4f}"
    if record.left_out:
        return f"| {record.number} | left out | | left out | | {kl} |"
    groups = f"{record.groups}" + (
        f", without {', '.join(map(str, record.groups_out))}" if record.groups_out else ""
    )
    return (
        f"| {record.number} | {record.channels} of {done.parent_size.channels} | {record.mlp_loss:.2%} | {groups} | "
        f"{record.attention_loss:.2%} | {kl} |"
    )


def _speeds(job: PruneJob, speeds: dict[str, Sequence[Speed]] | Any) -> Iterator[str]:
    if not speeds:
        return
    for parent, pruned in zip(speeds[PARENT], speeds[PRUNED], strict=True):
        asked = f"; {job.speed_up:g}x was asked for" if job.speed_up and pruned.batch == 1 else ""
        yield (
            f"batch {pruned.batch}: {pruned.ratio.value:.2f}x as fast as its parent ({pruned.tokens_per_second.value:.0f} "
            f"tokens/s, parent {parent.tokens_per_second.value:.0f}{asked})"
        )


def _estimate(measured: Estimate, form: str) -> str:
    return f"{measured.value:{form}} [{measured.low:{form}}, {measured.high:{form}}]"
