"""Quality against cost, in one picture: routers beside the tiers alone, a random mix of them, and an oracle."""

from pathlib import Path

from .curve import PLACES, Curve
from .report import Report


def draw(report: Report, files: list[Path]) -> None:
    """Into each of `files`, by its suffix. Raises ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure

    learned = report.learned
    ratio = learned.small_cost / learned.large_cost
    dear = learned.dear_cost / learned.large_cost
    costs = [ratio + place * (dear - ratio) for place in PLACES]
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()

    def shares(curve: Curve) -> list[float]:
        return [100 * point.value for point in curve.quality]

    for policy in learned.policies:
        (line,) = axes.plot(costs, shares(policy.curve), label=policy.name)
        low = [100 * point.low for point in policy.curve.quality]
        high = [100 * point.high for point in policy.curve.quality]
        axes.fill_between(costs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        for promise in policy.promises:
            if promise.pays:
                at = (promise.cost.value, 100 * promise.quality.value * learned.large_right.value)
                axes.plot(*at, marker="o", color=line.get_color())
                axes.annotate(
                    f"{promise.threshold.quality:g}", at, textcoords="offset points", xytext=(5, -11)
                )
    ends = (100 * learned.small_right.value, 100 * learned.large_right.value)
    axes.plot(costs, shares(learned.oracle), color="0.6", linestyle=":", label="oracle")
    axes.plot((ratio, dear), ends, color="0.4", linestyle="--", label="random mix")
    for name, cost, right in zip((report.small, report.large), (ratio, 1), ends, strict=True):
        axes.plot(cost, right, marker="s", color="0.2")
        axes.annotate(name, (cost, right), textcoords="offset points", xytext=(6, 6))
    axes.set(xlabel="cost of an answer, beside the large tier's", ylabel="right answers, %")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.set_title(f"{report.workload}: dots are promises, as tested", fontsize=9)
    for file in files:
        figure.savefig(file, dpi=110)
