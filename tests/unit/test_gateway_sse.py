"""Streams cut into events: whatever the pieces they come in, and with bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.gateway.sse import (
    DONE,
    MAX_EVENT,
    EventTooLong,
    Splitter,
    event_of,
    payload,
    read_json,
)

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXTS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=20
)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, over and over."""
    pieces, start, turn = [], 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[start : start + size])
        start, turn = start + size, turn + 1
    return pieces


@given(st.lists(st.tuples(TEXTS, ENDS), max_size=8), st.lists(st.integers(1, 9), min_size=1))
def test_the_same_events_come_out_whatever_the_pieces(
    texts: list[tuple[str, bytes]], sizes: list[int]
) -> None:
    data = b"".join(b"data: " + text.encode() + end + end for text, end in texts)
    splitter = Splitter()
    events = [event for piece in cut(data, sizes) for event in splitter.feed(piece)]
    assert b"".join(events) + splitter.rest == data
    found = [value for event in events if (value := payload(event)) is not None]
    assert found == [text.encode() for text, _ in texts]


@given(st.binary(max_size=200), st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_no_byte_is_lost_or_added(data: bytes, sizes: list[int]) -> None:
    splitter = Splitter()
    events = [event for piece in cut(data, sizes) for event in splitter.feed(piece)]
    assert b"".join(events) + splitter.rest == data


def test_an_event_is_given_when_it_is_whole_and_not_before() -> None:
    splitter = Splitter()
    assert splitter.feed(b'data: {"a"') == []
    assert splitter.feed(b": 1}\n") == []
    assert splitter.feed(b"\ndata: x") == [b'data: {"a": 1}\n\n']
    assert splitter.rest == b"data: x"


def test_an_event_without_an_end_is_an_error() -> None:
    splitter = Splitter()
    splitter.feed(b"data: ")
    with pytest.raises(EventTooLong):
        for _ in range(MAX_EVENT // 65536 + 1):
            splitter.feed(b"x" * 65536)
    with pytest.raises(EventTooLong):
        Splitter().feed(b"x" * (MAX_EVENT + 1) + b"\n\n")


@pytest.mark.parametrize(
    ("event", "value"),
    [
        (b"data: one\n\n", b"one"),
        (b"data:one\r\n\r\n", b"one"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"event: x\ndata: y\nid: 3\n\n", b"y"),
        (b"\ndata: y\n\n", b"y"),
        (b"data\n\n", b""),
        (b": a comment\n\n", None),
        (b"dataset: x\n\n", None),
        (b"\n\n", None),
    ],
)
def test_what_the_data_lines_hold(event: bytes, value: bytes | None) -> None:
    assert payload(event) == value


def test_json_of_an_event() -> None:
    assert read_json(payload(event_of({"ü": 1})) or b"") == {"ü": 1}
    assert [read_json(data) for data in (b"[1]", b"{", b"\xff", DONE, b"[" * 100_000)] == [None] * 5
