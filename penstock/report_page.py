"""Savings as one page of HTML that needs nothing else. Pure; everything that is no text of ours is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from .proxy.dashboard.files import text_of
from .proxy.observe.savings import ASSUMPTIONS, Part, Savings
from .proxy.tenants.totals import HOUR
from .proxy.tenants.window import moment
from .report_text import NOTHING, count, money, name_of, notes, signed_duration, time_of

_STYLE = """
main { max-width: 880px; margin: 0 auto; padding: 32px 16px 48px; display: grid; gap: 16px; }
main > header { display: flex; flex-wrap: wrap; gap: 4px 16px; justify-content: space-between; align-items: baseline; }
main > header h1 { font-size: 20px; }
ul { margin: 0; padding-left: 18px; color: var(--muted); display: grid; gap: 6px; }
svg { display: block; width: 100%; height: 96px; }
.computed { fill: var(--miss); }
.spared { fill: var(--hit); }
.key { display: inline-block; width: 9px; height: 9px; border-radius: 2px; margin-right: 5px; }
.key.computed { background: var(--miss); }
.key.spared { background: var(--hit); margin-left: 12px; }
@media print { .panel { break-inside: avoid; } }
"""
_CHART_HEIGHT = 96


def report_page(savings: Savings) -> str:
    since, until = moment(savings.since), moment(savings.until)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Penstock: what was saved</title>
<style>{text_of("theme.css")}{_STYLE}</style>
</head>
<body>
<main>
<header><h1>What Penstock saved</h1><p class="muted">{since} to {until}</p></header>
{"".join(_panels(savings)) if savings.total.requests else f'<p class="panel">{NOTHING}</p>'}
</main>
</body>
</html>
"""


def _panels(savings: Savings) -> Iterable[str]:
    total, share = savings.total, savings.saved_share
    sums = (
        ("Money saved", money(savings.saved_cost), "" if share is None else f"{100 * share:.0f} %"),
        ("Waiting saved", signed_duration(savings.saved_seconds), ""),
        ("Requests", f"{total.requests:,}", f"{total.failed:,} failed"),
        ("Tokens", f"{total.prompt_tokens + total.completion_tokens:,}", ""),
    )
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>" for name, value, more in sums
    )
    about = (
        f"{money(total.cost)} spent, {money(savings.baseline_cost)} without; "
        f"{signed_duration(total.waited_seconds)} waited, {signed_duration(savings.baseline_seconds)} without."
    )
    said = "".join(f'<p class="muted">{note}</p>' for note in notes(savings))
    yield f'<section class="panel"><dl class="sums">{shown}</dl><p class="muted">{about}</p>{said}</section>'
    levers = [
        (lever.name, count(lever.requests), count(lever.tokens), money(lever.cost), time_of(lever))
        for lever in savings.levers
    ]
    yield _panel("By lever", _table(("Lever", "Requests", "Tokens not computed", "Money", "Time"), levers))
    if len(savings.hours) > 1:
        yield _panel("Tokens by hour", _chart(savings))
    for title, parts in (("By model", savings.models), ("By tenant", savings.tenants)):
        yield _panel(
            title,
            _table(("Name", "Requests", "Prompt", "In KV", "Completion", "Money"), map(_cells, parts)),
        )
    yield _panel("Assumed", f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in ASSUMPTIONS)}</ul>")


def _cells(part: Part) -> tuple[str, ...]:
    total = part.total
    figures = (total.requests, total.prompt_tokens, total.cached_tokens, total.completion_tokens)
    return (name_of(part), *(f"{figure:,}" for figure in figures), money(total.cost))


def _panel(title: str, body: str) -> str:
    return f'<section class="panel"><header><h2>{title}</h2></header>{body}</section>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _chart(savings: Savings) -> str:
    """A bar an hour: tokens of answers that were computed, and above them those of answers that were kept or shared."""
    first, last = savings.since // HOUR, savings.until // HOUR
    sums = {int(part.name): part.total for part in savings.hours}
    reused = {int(hour): tokens for hour, tokens in savings.reused_tokens.items()}
    tokens = {hour: total.prompt_tokens + total.completion_tokens for hour, total in sums.items()}
    most = max(tokens.values(), default=0) or 1
    bars = []
    for hour, amount in tokens.items():
        spared = reused.get(hour, 0)
        height, top = _CHART_HEIGHT * (amount - spared) / most, _CHART_HEIGHT * spared / most
        place = f'x="{hour - first + 0.1:g}" width="0.8"'
        bars.append(
            f'<rect class="computed" {place} y="{_CHART_HEIGHT - height:g}" height="{height:g}"/>'
            f'<rect class="spared" {place} y="{_CHART_HEIGHT - height - top:g}" height="{top:g}"/>'
        )
    label = f"Tokens of {len(tokens)} hours, at most {most:,} in one"
    key = '<p class="muted"><span class="key computed"></span>computed<span class="key spared"></span>from the cache</p>'
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {last - first + 1} {_CHART_HEIGHT}" '
        f'preserveAspectRatio="none">{"".join(bars)}</svg>{key}'
    )
