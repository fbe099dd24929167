"""What was measured of several models: as one table in Markdown, and as JSON."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .accuracy import Accuracy
from .comparison import Comparison
from .estimate import Estimate
from .speed import Speed

NAME = "eval"


@dataclass(slots=True)
class Row:
    """One model; None and empty for what was not measured.

    Attributes:
        name: as it was asked for.
        precision: what its weights, and its KV where that is another, are served in.
        weight_bytes: in memory.
    """

    name: str
    precision: str
    weight_bytes: int
    comparison: Comparison | None = None
    accuracy: Accuracy | None = None
    speeds: list[Speed] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """Attributes:
    reference: what texts are compared with; `rows[0]` is what answers and speeds are compared with.
    texts, tasks: the files' names, None for what was not given.
    """

    reference: str
    machine: str
    texts: str | None
    tasks: str | None
    rows: list[Row]


def as_dict(report: Report) -> dict[str, Any]:
    """Plain values for JSON."""
    return dataclasses.asdict(report)


def tables(report: Report) -> Iterator[str]:
    """Markdown, line by line; what stands in brackets holds the true value in 95 of 100 such measurements."""
    yield report.machine
    yield ""
    first, *_ = report.rows
    if first.comparison is not None:
        measured = first.comparison
        yield (
            f"Texts: {report.texts}, {measured.kl.count} tokens that count{_about(measured.topics)}, "
            f"beside {report.reference} (perplexity {shown(measured.reference_perplexity, '#.4g')})."
        )
    if first.accuracy is not None:
        count, topics = first.accuracy.share.count, first.accuracy.topics
        yield f"Tasks: {report.tasks}, {count} of them{_about(topics)}, beside {first.name}."
    if first.speeds:
        rounds = first.speeds[0].ratio.count
        yield f"Speed: decoding without drafts, {rounds} rounds of all models in turn, beside {first.name}."
    yield ""
    columns = _columns(report)
    cells = [[title for title, _ in columns]]
    cells += [[show(row) for _, show in columns] for row in report.rows]
    yield from aligned(cells)


def _about(topics: int | None) -> str:
    return "" if topics is None else f" about {topics} topics"


def aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table, whose first line is its head, with columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *body = (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    )
    yield head
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    yield from body


Column = tuple[str, Callable[[Row], str]]


def _columns(report: Report) -> list[Column]:
    """Of what was measured, which is the same for all rows. A model beside itself has nothing to show."""
    first = report.rows[0]
    columns: list[Column] = [
        ("model", lambda row: row.name),
        ("precision", lambda row: row.precision),
        ("weights", lambda row: f"{row.weight_bytes / 1e6:,.1f} MB"),
    ]
    if first.comparison is not None:
        columns += [
            ("perplexity", lambda row: f"{_comparison(row).perplexity.value:#.4g}"),
            ("change", _beside(report.reference, _perplexity_change)),
            ("KL, nats", _beside(report.reference, lambda row: shown(_comparison(row).kl, ".2g"))),
            ("same top token", _beside(report.reference, lambda row: _percent(_comparison(row).agreement))),
        ]
    if first.accuracy is not None:
        columns += [("right answers", _right), ("change", _beside(first.name, _gained_and_lost))]
    for place, speed in enumerate(first.speeds):
        columns += [
            (f"tokens/s, batch {speed.batch}", _rate_at(place)),
            (f"beside {first.name}", _beside(first.name, _ratio_at(place))),
        ]
    return columns


def _beside(name: str, show: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: "" if row.name == name else show(row)


def _comparison(row: Row) -> Comparison:
    assert row.comparison is not None
    return row.comparison


def _perplexity_change(row: Row) -> str:
    return _percent(_comparison(row).perplexity_change, signed=True)


def _right(row: Row) -> str:
    assert row.accuracy is not None
    return _percent(row.accuracy.share)


def _gained_and_lost(row: Row) -> str:
    assert row.accuracy is not None
    return f"+{row.accuracy.gained} -{row.accuracy.lost}: {_percent(row.accuracy.change, signed=True)}"


def _rate_at(place: int) -> Callable[[Row], str]:
    return lambda row: f"{row.speeds[place].tokens_per_second.value:,.0f}"


def _ratio_at(place: int) -> Callable[[Row], str]:
    return lambda row: f"{shown(row.speeds[place].ratio, '.2f')}x"


def shown(measured: Estimate, form: str) -> str:
    """With its interval."""
    return f"{measured.value:{form}} [{measured.low:{form}}, {measured.high:{form}}]"


def _percent(measured: Estimate, *, signed: bool = False) -> str:
    form = "+.2f" if signed else ".1f"
    low, high = 100 * measured.low, 100 * measured.high
    return f"{100 * measured.value:{form}} % [{low:{form}}, {high:{form}}]"
