"""Models as Anthropic's API lists them: from the cards of OpenAI's API, a page at a time. Knows no model itself."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ...errors import InvalidRequestError
from ..compat import FieldPolicy

DEFAULT_LIMIT, MAX_LIMIT = 20, 1000

Card = dict[str, Any]


def anthropic_card(card: Mapping[str, Any]) -> Card:
    """`max_input_tokens` and `max_tokens` share one context; None: unknown."""
    return {
        "type": "model",
        "id": card["id"],
        "display_name": card["id"],
        "created_at": datetime.fromtimestamp(card["created"], UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": card["max_model_len"],
        "max_tokens": card["max_model_len"],
    }


def anthropic_page(cards: Sequence[Mapping[str, Any]], query: Mapping[str, str], policy: FieldPolicy) -> Card:
    """The page that `limit`, `after_id` and `before_id` ask for.

    Raises InvalidRequestError for a limit outside 1 to 1000; an id that is not listed is refused, or dropped.
    """
    limit = _limit(query.get("limit"))
    ids = [card["id"] for card in cards]
    begin, end = 0, len(cards)
    if (after := _known("after_id", query, ids, policy)) is not None:
        begin = ids.index(after) + 1
    if (before := _known("before_id", query, ids, policy)) is not None:
        end = ids.index(before)
    chosen = cards[begin:end]
    # Before an id, the page holds those next to it.
    shown = chosen[-limit:] if before is not None and after is None else chosen[:limit]
    return {
        "data": [anthropic_card(card) for card in shown],
        "has_more": len(chosen) > len(shown),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def _limit(given: str | None) -> int:
    if given is None:
        return DEFAULT_LIMIT
    if not (given.isascii() and given.isdigit() and 1 <= int(given) <= MAX_LIMIT):
        raise InvalidRequestError(
            f"limit is {given[:20]!r}; it must be a whole number from 1 to {MAX_LIMIT}.", param="limit"
        )
    return int(given)


def _known(name: str, query: Mapping[str, str], ids: Sequence[str], policy: FieldPolicy) -> str | None:
    given = query.get(name)
    if given is None or given in ids:
        return given
    policy.refuse_or_drop(name, f"{name} is {given[:80]!r}, which is none of the models listed.")
    return None
