"""Several models in one picture: what they are worth against how fast and how large they are."""

from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .estimate import Estimate
from .report import NAME, Report, Row


def require_matplotlib() -> None:
    """Raises ConfigError where it is missing, before hours of measuring."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Drawing the plot needs matplotlib; install penstock[plot], or leave --output out.",
            param="output",
        ) from error


def draw(report: Report, folder: Path) -> None:
    """NAME.png and NAME.svg: right answers, else KL, else speed, against tokens/s (where measured) and size."""
    from matplotlib.figure import Figure

    worth = _worth(report.rows[0])
    against = ["size"] if worth == "speed" or not report.rows[0].speeds else ["speed", "size"]
    figure = Figure(figsize=(6.5 * len(against), 4.8), layout="constrained")
    for panel, axis in zip(figure.subplots(1, len(against), squeeze=False)[0], against, strict=True):
        for row in report.rows:
            _point(panel, row, axis, worth)
        panel.set(xlabel=_LABELS[axis], ylabel=_LABELS[worth])
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    panel.legend(loc="best")
    figure.suptitle(f"beside {report.reference}; {report.machine}", fontsize=9)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"{NAME}.{kind}", dpi=110)


_LABELS = {
    "accuracy": "right answers, %",
    "kl": "KL from the reference, nats per token",
    "speed": "tokens/s, one stream",
    "size": "weights, MB",
}


def _worth(row: Row) -> str:
    if row.accuracy is not None:
        return "accuracy"
    return "speed" if row.comparison is None else "kl"


def _point(panel: Any, row: Row, across: str, up: str) -> None:
    x, y = _value(row, across), _value(row, up)
    panel.errorbar(x.value, y.value, xerr=_bars(x), yerr=_bars(y), marker="o", capsize=3, label=row.name)


def _value(row: Row, what: str) -> Estimate:
    if what == "size":
        megabytes = row.weight_bytes / 1e6
        return Estimate(megabytes, megabytes, megabytes, 1)
    if what == "speed":
        return row.speeds[0].tokens_per_second
    if what == "kl":
        assert row.comparison is not None
        return row.comparison.kl
    assert row.accuracy is not None
    share = row.accuracy.share
    return Estimate(100 * share.value, 100 * share.low, 100 * share.high, share.count)


def _bars(measured: Estimate) -> list[list[float]]:
    """[2, 1] as matplotlib takes them; rounding may put the value a hair outside."""
    below, above = measured.value - measured.low, measured.high - measured.value
    return [[max(0.0, below)], [max(0.0, above)]]
