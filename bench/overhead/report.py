"""From samples to medians, percentiles, ratios and Markdown. Knows nothing of how anything is measured.

Samples during which others used the machine count only where there are no others: two threads of one core slow each other,
so that not even CPU time is left alone. Ratios are of samples of one turn, which follow each other closely.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from peers.table import Sample, median

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
    """All samples of one run: figures by proxy, and times to first events in seconds, one of each a turn."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
        self._first: dict[str, list[tuple[float, Sequence[float]]]] = defaultdict(list)

    def add(self, proxy: str, figures: Mapping[str, float], first: Sequence[float], others: float) -> None:
        """`others`: the cores that other processes used meanwhile."""
        for name, value in figures.items():
            self.figures[proxy][name].append(Sample(value, others))
        if first:
            self._first[proxy].append((others, first))

    def medians(self, proxy: str) -> dict[str, float]:
        """Of each figure; with what a first token took longer than `direct`, and requests per CPU second."""
        found = {name: median(values) for name, values in self.figures[proxy].items()}
        for share in (50, 99):
            if proxy != DIRECT and self._first[proxy] and self._first[DIRECT]:
                added = self._first_token(proxy, share) - self._first_token(DIRECT, share)
                found[f"ttft_p{share}_added_ms"] = added * 1e3
        if "crowd_cpu_us" in found:
            found["requests_per_cpu_s"] = 1e6 / found["crowd_cpu_us"]
        return found

    def _first_token(self, proxy: str, share: int) -> float:
        """A percentile of each turn, and of these the median."""
        return median([Sample(percentile(times, share), others) for others, times in self._first[proxy]])

    def ratio(self, figure: str, proxy: str, other: str = FLOOR) -> float | None:
        """By how much `proxy` has more than `other`. None where either has no sample."""
        mine, theirs = (self.figures[name].get(figure, []) for name in (proxy, other))
        pairs = [
            Sample(a.value / b.value, max(a.others, b.others)) for a, b in zip(mine, theirs, strict=False)
        ]
        return median(pairs) if pairs else None

    def scaling(self, one: str, several: str) -> float | None:
        """How much more the workers of `several` serve than `one` alone, on as many cores: by CPU and the shares of each.

        The busiest worker is full first; then all serve `balanced_workers` times what it does. None without samples.
        """
        cpu = self.ratio("crowd_cpu_us", several, one)
        return None if cpu is None else median(self.figures[several]["balanced_workers"]) / cpu

    def disturbed(self, proxy: str, figure: str) -> bool:
        """Not one of its samples was quiet."""
        if figure.startswith("ttft"):
            samples = [Sample(0.0, others) for others, _ in self._first[proxy]]
        else:
            measured = "crowd_cpu_us" if figure == "requests_per_cpu_s" else figure
            samples = self.figures[proxy].get(measured, [])
        return bool(samples) and not any(sample.quiet for sample in samples)


def percentile(values: Sequence[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


def markdown(samples: Samples, titles: Mapping[str, str]) -> str:
    """One row a figure, one column a proxy of `titles` that has figures. Starred: others used the machine all the time."""
    medians = {name: samples.medians(name) for name in titles if samples.figures.get(name)}
    lines = [f"| | {' | '.join(titles[name] for name in medians)} |", "|---|" + "---|" * len(medians)]
    for figure, title in TITLES.items():
        cells = [
            _number(values.get(figure)) + "\\*" * samples.disturbed(name, figure)
            for name, values in medians.items()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
        if figure in RATIOS:
            cells = [_ratio(samples.ratio(figure, name)) for name in medians]
            lines.append(f"| ... over the floor's | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
