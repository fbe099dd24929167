"""What an answer costs beside now, as expected and as checked, in one picture."""

from pathlib import Path

from .report import Report


def draw(report: Report, file: Path) -> None:
    """Raises ImportError where matplotlib is missing."""
    from matplotlib.figure import Figure

    timings = report.timings
    bars = [("the model, now", 1.0, "0.6"), ("the student alone", timings.small / timings.large, "0.8")]
    for one in report.rehearsed:
        policy = one.option.policy
        bars.append((f"{policy}, by figures", one.option.cost, "tab:cyan"))
        bars.append((f"{policy}, rehearsed", 1 / one.seen.cheaper, "tab:blue"))
        if one.checked is not None:
            bars.append((f"{policy}, checked", 1 / one.checked.cheaper, "tab:green"))
    figure = Figure(figsize=(7, 0.9 + 0.55 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (_, cost, color) in enumerate(bars):
        axes.barh(place, cost, color=color, height=0.6)
        axes.annotate(f"{cost:.2f}", (cost, place), textcoords="offset points", xytext=(4, -3), fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(cost for _, cost, _ in bars))
    axes.set(xlabel="cost of an answer, beside now")
    axes.set_title(f"{report.asked}; {report.machine}", fontsize=9)
    figure.savefig(file, dpi=110)
