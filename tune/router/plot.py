"""Quality against cost, in one picture: routers beside the tiers alone, a random mix of them, and an oracle."""

from pathlib import Path

from .curve import PLACES
from .report import Report

_BELOW, _ABOVE = (4, -12), (4, 6)


def draw(report: Report, files: list[Path]) -> None:
    """Into each of `files`, by its suffix. A band is where the router is, beside the mix, in 95 of 100 such measurements."""
    from matplotlib.figure import Figure

    learned = report.learned
    cheap, dear = learned.small_cost / learned.large_cost, learned.dear_cost / learned.large_cost
    costs = [cheap + place * (dear - cheap) for place in PLACES]
    ends = (100 * learned.small_right.value, 100 * learned.large_right.value)
    mix = [ends[0] + place * (ends[1] - ends[0]) for place in PLACES]
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, policy in enumerate(learned.policies):
        curve = policy.curve
        quality = [100 * point.value for point in curve.quality]
        (line,) = axes.plot(costs, quality, label=policy.name)
        color = line.get_color()
        low = [at + 100 * gain.low for at, gain in zip(mix, curve.gain, strict=True)]
        high = [at + 100 * gain.high for at, gain in zip(mix, curve.gain, strict=True)]
        axes.fill_between(costs, low, high, color=color, alpha=0.15, linewidth=0)
        for promise in policy.promises:
            if promise.pays and policy.objection is None:
                at = (promise.cost.value, ends[1] * promise.quality.value)
                axes.plot(*at, marker="o", color=color)
                label, where = f"{promise.threshold.quality:g}", _BELOW if number % 2 else _ABOVE
                axes.annotate(label, at, textcoords="offset points", xytext=where, color=color, fontsize=8)
    oracle = [100 * point.value for point in learned.oracle.quality]
    axes.plot(costs, oracle, color="0.6", linestyle=":", label="oracle")
    axes.plot((cheap, dear), ends, color="0.4", linestyle="--", label="random mix")
    marks = [(report.small, cheap, ends[0]), (report.large, 1.0, ends[1])]
    if dear < 1:
        marks.append(("both, always", dear, ends[1]))
    for name, cost, right in marks:
        axes.plot(cost, right, marker="s", color="0.2")
        axes.annotate(name, (cost, right), textcoords="offset points", xytext=(-4, 7), ha="right")
    axes.set(xlabel="cost of an answer, beside the large tier's", ylabel="right answers, %")
    axes.set_xlim(0, 1.05)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    axes.set_title(f"{report.workload}: bands beside the random mix, dots are promises as tested", fontsize=9)
    for file in files:
        figure.savefig(file, dpi=110)
