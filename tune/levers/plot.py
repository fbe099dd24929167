"""Right answers against what an answer costs, in one picture: every point, and those that nothing beats."""

from pathlib import Path

from .report import Report


def draw(report: Report, files: list[Path]) -> None:
    """Into each of `files`, by its suffix. Raises ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    points = [found for found in (report.baseline, *report.found) if not found.trial.failure]
    for found in points:
        color = "tab:red" if found.broken else "tab:blue"
        axes.plot(1 / found.cheaper, 100 * found.trial.accuracy, "o", color=color, alpha=0.5, markersize=5)
    front = report.front
    axes.step(
        [1 / found.cheaper for found in front],
        [100 * found.trial.accuracy for found in front],
        where="post",
        color="0.4",
        label="nothing is cheaper and better",
    )
    axes.plot(
        1,
        100 * report.baseline.trial.accuracy,
        "s",
        color="0.2",
        label=f"baseline: {report.baseline.choices['model']}",
    )
    if (chosen := report.chosen) is not None:
        axes.plot(
            1 / chosen.cheaper,
            100 * chosen.trial.accuracy,
            "*",
            color="tab:green",
            markersize=15,
            label=chosen.name,
        )
    axes.axhline(
        100 * (report.baseline.trial.accuracy - report.limits.loss),
        linestyle=":",
        color="tab:red",
        label="the limit",
    )
    axes.set_xscale("log")
    axes.set(xlabel="cost of an answer, beside the baseline's", ylabel="right answers, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="best", fontsize=8)
    axes.set_title(f"{report.requests} requests of {report.workload}; {report.machine}", fontsize=9)
    for file in files:
        figure.savefig(file, dpi=110)
