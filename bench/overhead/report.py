"""From samples to medians, percentiles, ratios and Markdown. Knows nothing of how anything is measured."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

DIRECT = "direct"
FLOOR = "floor"
TITLES = {
    "request_cpu_us": "busy: CPU of a request, µs",
    "chunk_cpu_us": "busy: CPU of an SSE chunk, µs",
    "stream_cpu_us": "busy: CPU of a stream beside its chunks, µs",
    "quiet_request_cpu_us": "quiet: CPU of a request, µs",
    "quiet_chunk_cpu_us": "quiet: CPU of an SSE chunk, µs",
    "quiet_stream_cpu_us": "quiet: CPU of a stream beside its chunks, µs",
    "ttft_p50_added_ms": "added TTFT, p50, ms",
    "ttft_p99_added_ms": "added TTFT, p99, ms",
    "requests_s": "requests/s, 64 at once",
    "busy_cores": "cores it had then",
    "requests_per_cpu_s": "requests per CPU second then",
}
RATIOS = ("request_cpu_us", "chunk_cpu_us", "quiet_request_cpu_us", "quiet_chunk_cpu_us")
"""Also told as a multiple of the floor's."""


class Samples:
    """All samples of one run: figures by proxy, and times to first events, in seconds."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.first: dict[str, list[float]] = defaultdict(list)

    def add(self, proxy: str, figures: Mapping[str, float], first: Sequence[float]) -> None:
        for name, value in figures.items():
            self.figures[proxy][name].append(value)
        self.first[proxy] += first

    def medians(self, proxy: str) -> dict[str, float]:
        """Of each figure; with what a first token took longer than `direct`, and requests per CPU second."""
        found = {name: median(values) for name, values in self.figures[proxy].items()}
        for share in (50, 99):
            times, direct = self.first[proxy], self.first[DIRECT]
            if times and direct and proxy != DIRECT:
                added = percentile(times, share) - percentile(direct, share)
                found[f"ttft_p{share}_added_ms"] = added * 1e3
        if "crowd_cpu_us" in found:
            found["requests_per_cpu_s"] = 1e6 / found["crowd_cpu_us"]
        return found


def percentile(values: Sequence[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


def scaling(one: Mapping[str, float], several: Mapping[str, float]) -> float | None:
    """How much more several workers serve than one, on as many cores: by CPU, with the unevenness of their shares.

    The busiest of the workers is full first; then all serve `balanced_workers` times what it does. None without figures.
    """
    if "crowd_cpu_us" not in one or "crowd_cpu_us" not in several:
        return None
    return several["balanced_workers"] * one["crowd_cpu_us"] / several["crowd_cpu_us"]


def markdown(medians: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]) -> str:
    """One row a figure, one column a proxy of `titles` that has figures."""
    shown = {name: title for name, title in titles.items() if medians.get(name)}
    lines = [f"| | {' | '.join(shown.values())} |", "|---|" + "---|" * len(shown)]
    for figure, title in TITLES.items():
        cells = [_number(medians[name].get(figure)) for name in shown]
        lines.append(f"| {title} | {' | '.join(cells)} |")
        if figure in RATIOS and figure in medians.get(FLOOR, {}):
            floor = medians[FLOOR][figure]
            cells = [_ratio(medians[name].get(figure), floor) for name in shown]
            lines.append(f"| ... over the floor's | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(value: float | None, floor: float) -> str:
    return "-" if value is None else f"{value / floor:.2f}x"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
