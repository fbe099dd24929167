"""What Anthropic's clients see of the models: cards, pages, cursors."""

from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, running_server

from penstock.errors import InvalidRequestError, UnsupportedParameterError
from penstock.proxy.anthropic.models import anthropic_page
from penstock.proxy.compat import FieldPolicy

CARDS = [{"id": name, "created": 0, "max_model_len": 8} for name in "abcde"]


def ids(query: dict[str, str], unsupported: Any = "refuse") -> tuple[str, bool]:
    page = anthropic_page(CARDS, query, FieldPolicy(unsupported))
    shown = "".join(card["id"] for card in page["data"])
    assert (page["first_id"], page["last_id"]) == ((shown[0], shown[-1]) if shown else (None, None))
    return shown, page["has_more"]


@pytest.mark.parametrize(
    ("query", "shown", "has_more"),
    [
        ({}, "abcde", False),
        ({"limit": "2"}, "ab", True),
        ({"limit": "2", "after_id": "b"}, "cd", True),
        ({"limit": "2", "after_id": "d"}, "e", False),
        ({"limit": "2", "before_id": "d"}, "bc", True),
        ({"limit": "5", "after_id": "a", "before_id": "d"}, "bc", False),
        ({"after_id": "e"}, "", False),
    ],
)
def test_a_page_begins_after_one_id_and_ends_before_another(
    query: dict[str, str], shown: str, has_more: bool
) -> None:
    assert ids(query) == (shown, has_more)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "two", "²", ""])
def test_a_limit_outside_its_range_is_an_error(limit: str) -> None:
    with pytest.raises(InvalidRequestError, match="from 1 to 1000"):
        ids({"limit": limit})


def test_a_cursor_that_is_not_listed_is_refused_or_dropped() -> None:
    with pytest.raises(UnsupportedParameterError, match="after_id is 'z'"):
        ids({"after_id": "z"})
    assert ids({"after_id": "z", "limit": "1"}, "drop") == ("a", True)


async def test_the_header_of_anthropics_clients_decides(engine_address: str, model: Path) -> None:
    async with running_server(
        engine_address, model, unsupported="drop", model_aliases={"claude": "tiny"}
    ) as server:
        page, dropped = await _get(server, "/v1/models?before_id=none&limit=1")
        assert [card["id"] for card in page["data"]] == ["tiny"] and page["has_more"]
        assert dropped == "before_id"
        card, _ = await _get(server, "/v1/models/claude")
        assert card["type"] == "model" and card["id"] == card["display_name"] == "claude"
        assert card["created_at"].endswith("Z") and card["max_input_tokens"] == 512
        assert [card.id async for card in server.client().models.list()] == ["tiny", "claude"]


async def _get(server: RunningServer, path: str) -> tuple[dict[str, Any], str | None]:
    response = await server.client()._client.get(
        server.url + path, headers={"anthropic-version": "2023-06-01"}
    )
    return response.json(), response.headers.get("x-penstock-dropped")
