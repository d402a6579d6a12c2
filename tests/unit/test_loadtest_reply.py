"""One HTTP response, however its bytes are cut, is one and the same answer."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
from geventhttpclient.response import HTTPParseError
from hypothesis import given
from hypothesis import strategies as st
from loadtest_modules import answer, reply

HEAD = b"HTTP/1.1 %b\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = (
    b'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n',
    'data: {"choices": [{"index": 0, "delta": {"content": " né"}}]}\n\n'.encode(),
    b'data: {"choices": [{"index": 0, "delta": {"content": " two"}}]}\r\n\r\n',
    b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n',
    b"data: [DONE]\n\n",
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = HEAD % b"200 OK" + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n"


def made() -> tuple[answer.Answer, reply.Reply]:
    one = answer.Answer("0-0", "measured", "[x] p", 1.0, 1.0)
    return one, reply.Reply(one, SimpleNamespace(arrived=2.0))


@given(cuts=st.lists(st.integers(1, len(WHOLE) - 1), max_size=8, unique=True))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    one, read = made()
    ends = [0, *sorted(cuts), len(WHOLE)]
    enough = [read.take(WHOLE[a:b]) for a, b in pairwise(ends)]
    assert enough == [False] * len(cuts) + [True]
    assert (one.status, one.text, one.done, one.error) == (200, " né two", True, None)
    assert one.chunks == [2.0, 2.0]
    assert one.usage == {"completion_tokens": 2}


def test_an_interim_response_is_not_the_answer() -> None:
    one, read = made()
    assert read.take(b"HTTP/1.1 100 Continue\r\n\r\n") is False
    assert one.status is None
    assert read.take(WHOLE) is True
    assert one.status == 200


def test_a_refusals_words_are_kept_and_no_more_than_needed() -> None:
    one, read = made()
    assert read.take(HEAD % b"429 Too Many" + chunk(b"slow down")) is False
    assert read.take(chunk(b"x" * reply.ERROR_BODY)) is True
    assert (one.status, read.body[:9], one.chunks) == (429, b"slow down", [])


def test_nothing_is_read_after_an_error_in_the_stream() -> None:
    one, read = made()
    events = b'data: {"error": {"message": "out of luck"}}\n\n' + EVENTS[1]
    assert read.take(HEAD % b"200 OK" + chunk(events)) is True
    assert (one.error, one.chunks) == ("sse_error", [])


def test_a_connection_that_ends_is_an_end_or_no_http() -> None:
    one, read = made()
    assert read.take(WHOLE[:-20]) is False
    assert read.take(b"") is True
    for sent in (b"", b"no HTTP\r\n\r\n", b"HTTP/1.1 200"):
        one, read = made()
        with pytest.raises(HTTPParseError):
            read.take(sent) or read.take(b"")
        assert one.status is None
