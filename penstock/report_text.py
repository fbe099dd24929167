"""Savings as lines of text. Pure; what nobody knows is a dash, what is estimated has a ≈."""

import textwrap
from collections.abc import Iterator, Sequence

from .cli_cache_show import duration
from .proxy.observe.savings import ASSUMPTIONS, Lever, Part, Savings
from .proxy.tenants.window import moment

MAX_ROWS = 20
_WIDTH = 100
NOTHING = "No request named a model since then."
NO_PRICES = "Nothing here has a price: set those of upstreams' models, and local_hour_price, to see money."


def report_text(savings: Savings) -> list[str]:
    total = savings.total
    lines = [f"{moment(savings.since)} to {moment(savings.until)}", ""]
    if not total.requests:
        return [*lines, NOTHING]
    lines += [
        f"requests  {total.requests:,}, {total.failed:,} failed, {total.aborted:,} left by their clients",
        f"tokens    {total.prompt_tokens:,} of prompts ({total.cached_tokens:,} found in KV), "
        f"{total.completion_tokens:,} of answers",
        f"money     {money(total.cost)} spent, {money(savings.baseline_cost)} without the levers: {_saved(savings)} saved",
        f"waiting   {signed_duration(total.waited_seconds)}, {signed_duration(savings.baseline_seconds)} without: "
        f"{signed_duration(savings.saved_seconds)} saved",
    ]
    lines += [f"          {note}" for note in notes(savings)]
    lines += ["", f"{'lever':<28}{'requests':>10}{'tokens':>14}{'money':>14}{'time':>14}"]
    lines += [
        f"{lever.name:<28}{count(lever.requests):>10}{count(lever.tokens):>14}{money(lever.cost):>14}{time_of(lever):>14}"
        for lever in savings.levers
    ]
    for title, parts in (("model", savings.models), ("tenant", savings.tenants)):
        lines += _table(title, parts)
    return [*lines, "", "Assumed:", *(line for text in ASSUMPTIONS for line in _wrapped(text))]


def notes(savings: Savings) -> Iterator[str]:
    """What the sums leave out."""
    total = savings.total
    if total.unknown_usage:
        yield f"Of {total.unknown_usage:,} answers nobody knows the tokens; they are in no sum."
    if total.unknown_cost:
        yield f"Of {total.unknown_cost:,} answers nobody knows the cost; they are in no sum of money."
    for lever in savings.levers:
        if lever.unknown:
            yield f"What {lever.name} saved in {lever.unknown:,} answers nobody knows; it is in no sum of money."
    if not savings.baseline_cost and not total.unknown_cost:
        yield NO_PRICES


def money(value: float | None) -> str:
    """With as many places as it takes to see something."""
    if value is None:
        return "-"
    return f"{value:,.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.6f}"


def count(value: int | None) -> str:
    return f"{value:,}" if value else "-"


def time_of(lever: Lever) -> str:
    if lever.seconds is None:
        return "-"
    return f"{'≈ ' if lever.is_estimate and lever.requests else ''}{signed_duration(lever.seconds)}"


def signed_duration(seconds: float) -> str:
    return f"{'-' if seconds < 0 else ''}{duration(abs(seconds))}"


def name_of(part: Part) -> str:
    return part.name or "(not known yet)"


def _saved(savings: Savings) -> str:
    share = savings.saved_share
    return money(savings.saved_cost) + ("" if share is None else f" ({100 * share:.0f} %)")


def _table(title: str, parts: Sequence[Part]) -> list[str]:
    lines = [
        "",
        f"{title:<28}{'requests':>10}{'prompt':>12}{'in KV':>12}{'completion':>12}{'money':>14}",
    ]
    for part in parts[:MAX_ROWS]:
        total = part.total
        lines.append(
            f"{name_of(part)[:27]:<28}{total.requests:>10,}{total.prompt_tokens:>12,}{total.cached_tokens:>12,}"
            f"{total.completion_tokens:>12,}{money(total.cost):>14}"
        )
    if len(parts) > MAX_ROWS:
        lines.append(f"and {len(parts) - MAX_ROWS} more; --json has them all")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="- ", subsequent_indent="  ")
