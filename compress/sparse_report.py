"""A report of `sparse_eval` as JSON, as tables in Markdown, and as a plot."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..kernels.reference.sparse_attention import ESTIMATORS
from .sparse_eval import Report

NAME = "sparse-attention"


def as_dict(report: Report) -> dict[str, Any]:
    """Plain values for JSON; the names of masses become strings."""
    plain = dataclasses.asdict(report)
    for speed in plain["speed"]:
        for key in ("ratio", "kept"):
            speed[key] = {str(mass): value for mass, value in speed[key].items()}
    return plain


def tables(report: Report) -> Iterator[str]:
    """Markdown, line by line."""
    yield f"{report.model}, {report.context} tokens of context; {report.machine}"
    yield ""
    masses = list(report.speed[0].ratio)
    yield "Attention of one decoded row in all layers (sparse as a share of dense; keys kept):"
    yield ""
    yield "| context | dense ms | " + " | ".join(f"mass {mass}" for mass in masses) + " |"
    yield "|---|---|" + "---|" * len(masses)
    for speed in report.speed:
        cells = (f"{speed.ratio[mass]:.2f}x, {speed.kept[mass]:.1%}" for mass in masses)
        yield f"| {speed.context} | {speed.dense_ms:.2f} | " + " | ".join(cells) + " |"
    yield ""
    yield f"Answers at {report.context} tokens (perplexity of the last {report.decoded}):"
    yield ""
    yield f"| mass | perplexity | against dense | needles found of {report.needles} |"
    yield "|---|---|---|---|"
    dense = report.answers[0].perplexity
    for answer in report.answers:
        change = answer.perplexity / dense - 1
        name = "dense" if answer.mass is None else answer.mass
        yield f"| {name} | {answer.perplexity:.4f} | {change:+.2%} | {answer.needles_found} |"
    if not report.fidelity:
        return
    yield ""
    yield "What each way of estimating keeps when asked for a mass, over layers, heads and rows:"
    yield ""
    yield "| estimated from | mass asked | granules kept | true mass, mean | true mass, least | output error |"
    yield "|---|---|---|---|---|---|"
    for found in report.fidelity:
        yield (
            f"| {found.estimator} | {found.mass} | {found.kept:.1%} | {found.true_mass:.3f} "
            f"| {found.least_mass:.3f} | {found.output_error:.3f} |"
        )


def draw(report: Report, file: Path) -> None:
    """Three panels: time by context, true mass by keys kept, perplexity and needles by mass.

    Raises ConfigError where matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "Drawing the plot needs matplotlib; install penstock[plot], or leave --output out.",
            param="output",
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, masses, answers) = pyplot.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    contexts = [speed.context for speed in report.speed]
    for mass in report.speed[0].ratio:
        ratios = [speed.ratio[mass] for speed in report.speed]
        times.plot(contexts, ratios, marker="o", label=f"mass {mass}")
    times.axhline(1.0, color="black", linewidth=0.8, label="dense")
    times.set_xscale("log", base=2)
    times.set_ylim(bottom=0)
    times.set(xlabel="tokens of context", ylabel="attention time of a decode, dense = 1")

    for estimator in ESTIMATORS:
        found = [one for one in report.fidelity if one.estimator == estimator]
        masses.plot(
            [one.mass for one in found], [one.true_mass for one in found], marker="o", label=estimator
        )
    asked = list(report.speed[0].ratio)
    masses.plot(asked, asked, color="black", linewidth=0.8, label="as asked")
    masses.set(xlabel="mass asked for", ylabel=f"mass truly kept at {report.context} tokens")

    dense, *sparse = report.answers
    names = [str(one.mass) for one in sparse]
    answers.bar(names, [100 * (one.perplexity / dense.perplexity - 1) for one in sparse], color="tab:gray")
    answers.axhline(0.0, color="black", linewidth=0.8)
    answers.set(xlabel="mass asked for", ylabel="perplexity against dense, %")
    needles = ", ".join(f"{one.mass}: {one.needles_found}" for one in sparse)
    answers.set_title(f"needles of {report.needles}: dense {dense.needles_found}; {needles}", fontsize=9)
    for panel in (times, masses):
        panel.legend()
        panel.grid(alpha=0.3)
    figure.suptitle(f"Sparse attention at {report.context} tokens, {report.machine}", fontsize=10)
    figure.savefig(file, dpi=110)
