"""Server-sent events are cut where they end, whatever pieces they come in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UpstreamError
from penstock.proxy.upstreams.events import MAX_EVENT_BYTES, EventSplitter, data_of, split

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=20)
END = st.sampled_from(["\n", "\r\n"])


@st.composite
def events(draw: st.DrawFn) -> list[bytes]:
    """Whole events, each line with an end of its own, also comments and fields that nobody knows."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        lines = draw(
            st.lists(
                st.tuples(st.sampled_from(["data: ", "data:", ": ", "event: ", "id: "]), LINE),
                min_size=1,
                max_size=3,
            )
        )
        found.append("".join(name + text + draw(END) for name, text in lines) + draw(END))
    return [event.encode() for event in found]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds) if start < end]


@given(events(), st.lists(st.integers(0, 10_000), max_size=12))
def test_all_that_comes_goes_on_in_whole_events(sent: list[bytes], places: list[int]) -> None:
    splitter, got = EventSplitter(), []
    for piece in cut(b"".join(sent), places):
        if block := splitter.feed(piece):
            got += split(block)
    assert got == sent
    assert not splitter.has_rest


def test_every_place_and_every_pair_of_places() -> None:
    sent = [b": hi\n\n", b'data: {"a": 1}\r\n\r\n', b"event: x\ndata: 2\n\n", b"data: [DONE]\n\r\n"]
    whole = b"".join(sent)
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1):
            splitter = EventSplitter()
            blocks = [
                splitter.feed(piece)
                for piece in (whole[:first], whole[first:second], whole[second:])
                if piece
            ]
            assert b"".join(blocks) == whole
            assert [event for block in blocks for event in split(block)] == sent
            assert not splitter.has_rest


@given(events(), st.integers(1, 5))
def test_half_of_an_event_is_held_back(sent: list[bytes], missing: int) -> None:
    whole = b"".join(sent)
    splitter = EventSplitter()
    got = splitter.feed(whole[:-missing])
    assert whole.startswith(got) and b"".join(split(got)) == got
    assert len(got) <= len(whole) - len(sent[-1])


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: x\r\n\r\n", b"x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"event: e\ndata: x\nid: 3\n\n", b"x"),
        (b": comment\n\n", b""),
        (b"data:\n\n", b""),
        (b"\n\n", b""),
        ("data: \u2028\x85\n\n".encode(), "\u2028\x85".encode()),
    ],
)
def test_data(event: bytes, data: bytes) -> None:
    assert data_of(event) == data


def test_an_event_has_a_limit() -> None:
    splitter = EventSplitter()
    piece = b"x" * (1 << 20)
    with pytest.raises(UpstreamError, match="longer than"):
        for _ in range(MAX_EVENT_BYTES // len(piece) + 1):
            assert splitter.feed(piece) == b""
