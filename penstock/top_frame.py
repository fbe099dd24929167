"""Figures as lines of text, no wider than asked for. Pure, and plain: no escape codes."""

from .proxy.observe.top_figures import Figures, Spread

_LABEL = 10


def frame(figures: Figures, *, url: str, width: int) -> list[str]:
    """One line per subject; what is unknown is a dash."""
    title = f"penstock {url}  {figures.ready}"
    if figures.model is not None:
        title += f"  {figures.model}"
    statuses = "  ".join(f"{status}: {count}" for status, count in figures.statuses.items())
    outcomes = "  ".join(f"{outcome} {count}" for outcome, count in figures.outcomes.items())
    lines = [
        title,
        "",
        _row(
            "requests",
            f"{figures.requests_per_second:.1f}/s",
            f"errors {figures.errors_per_second:.1f}/s",
            statuses,
        ),
        _row("engine", f"running {_count(figures.running)}", f"waiting {_count(figures.waiting)}"),
        _row(
            "tokens",
            f"in {figures.tokens_in_per_second:.0f}/s",
            f"out {figures.tokens_out_per_second:.0f}/s",
            f"drafts right {_share(figures.accepted)}",
        ),
        _row("first", *_spread(figures.ttft)),
        _row("next", *_spread(figures.itl)),
        _row("proxy", *_spread(figures.overhead)),
        _row("cache", f"hits {_share(figures.hit_share)}", f"saved {figures.saved_seconds:.1f} s", outcomes),
        _row("KV", _bar(figures.kv_usage, width)),
    ]
    if figures.upstreams:
        lines += [
            "",
            f"{'upstream':<20}{'asked':>9}{'failed':>9}  {'breaker':<11}{'p50':>9}{'p99':>9}{'cost':>10}",
        ]
    for upstream in figures.upstreams:
        lines.append(
            f"{upstream.name[:19]:<20}{upstream.attempts_per_second:>7.1f}/s{_share(upstream.failed):>9}  "
            f"{upstream.breaker:<11}{_seconds(upstream.first_token.p50):>9}{_seconds(upstream.first_token.p99):>9}"
            f"{upstream.cost:>10.4f}"
        )
    return [line[:width].rstrip() for line in lines]


def _row(label: str, *cells: str) -> str:
    return f"{label:<{_LABEL}}" + "".join(f"{cell:<18}" for cell in cells)


def _spread(spread: Spread) -> tuple[str, str]:
    return f"p50 {_seconds(spread.p50)}", f"p99 {_seconds(spread.p99)}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _bar(share: float | None, width: int) -> str:
    if share is None:
        return "-"
    places = max(10, min(40, width - _LABEL - 8))
    full = round(places * share)
    return f"[{'#' * full}{'.' * (places - full)}] {100 * share:.0f} %"
