"""From samples to medians, ratios and Markdown. Knows nothing of how anything is measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

TITLES = {
    "single_decode_tok_s": "single stream 128 + 128, decode tok/s",
    "single_ttft_ms": "single stream 128 + 128, TTFT ms",
    "concurrent16_tok_s": "16 concurrent 128 + 128, tok/s",
    "ttft_1024_ms": "TTFT at 1,024 tokens, ms",
    "shared_prefix_tok_s": "16 sharing a fresh 512-token prefix, 64 out, tok/s",
    "cold_start_s": "cold start to first token, s",
    "http1_tok_s": "HTTP, 64 + 64, 1 client, tok/s",
    "http16_tok_s": "HTTP, 64 + 64, 16 clients, tok/s",
    "http64_tok_s": "HTTP, 64 + 64, 64 clients, tok/s",
}
QUIET = 0.1
"""Cores that others may use during a sample that counts in full."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured value, and how many cores others kept busy meanwhile."""

    value: float
    others: float

    @property
    def quiet(self) -> bool:
        return self.others <= QUIET


def lower_is_better(figure: str) -> bool:
    return not figure.endswith("_tok_s")


def median(samples: Sequence[Sample]) -> float:
    """Of the quiet samples; of all where none was quiet. Raises ValueError without samples."""
    if not samples:
        raise ValueError("no sample to take the median of")
    values = sorted(sample.value for sample in samples if sample.quiet) or sorted(s.value for s in samples)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def better_by(figure: str, ours: float, theirs: float) -> float:
    """Above 1 where ours is the better."""
    return theirs / ours if lower_is_better(figure) else ours / theirs


def best(figure: str, values: Iterable[float]) -> float | None:
    """None of no values."""
    return (min if lower_is_better(figure) else max)(values, default=None)


def ratio(figure: str, medians: Mapping[str, Mapping[str, float]], ours: str) -> float | None:
    """By how much `ours` is better than the best other engine; None where either has no value."""
    theirs = best(
        figure, (values[figure] for name, values in medians.items() if name != ours and figure in values)
    )
    if theirs is None or figure not in medians[ours]:
        return None
    return better_by(figure, medians[ours][figure], theirs)


def markdown(
    medians: Mapping[str, Mapping[str, float]],
    titles: Mapping[str, str],
    missing: Mapping[str, str],
    noisy: frozenset[tuple[str, str]] = frozenset(),
) -> str:
    """One row a figure, one column an engine in `titles`, whose first is ours, and the ratio to the best other.

    Args:
        medians: by engine and figure.
        titles: what the engines are called.
        missing: engines, or "engine, figure", that have no value, with the reason; listed below.
        noisy: (engine, figure) of which no sample was quiet; starred.
    """
    ours = next(iter(titles))
    lines = [
        f"| | {' | '.join(titles.values())} | ours / best peer |",
        "|---|" + "---|" * (len(titles) + 1),
    ]
    for figure, title in TITLES.items():
        if not any(figure in values for values in medians.values()):
            continue
        cells = [
            f"{medians[name][figure]:.4g}" + "\\*" * ((name, figure) in noisy)
            if figure in medians.get(name, {})
            else "-"
            for name in titles
        ]
        by = ratio(figure, medians, ours)
        lines.append(f"| {title} | {' | '.join(cells)} | {'-' if by is None else f'{by:.2f}x'} |")
    if noisy:
        lines += ["", f"\\* Others used more than {QUIET} cores during each of its samples."]
    lines += ["", *(f"- {who}: {reason}" for who, reason in missing.items())] if missing else []
    return "\n".join(lines)
