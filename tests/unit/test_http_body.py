"""The body of an answer, however its bytes are packed: held against h11."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.inference.effects import BrokenError
from runtime.inference.http_body import Body

CHUNKED = {"transfer-encoding": "chunked"}
FIRST_LINE = b"HTTP/1.1 200 OK\r\n"


def taken(body: Body, *pieces: bytes) -> bytes:
    return b"".join(body.feed(piece) for piece in pieces)


def by_h11(head: bytes, data: bytes) -> tuple[bytes, bool]:
    """What h11 makes of it, and whether it takes it for the whole."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(FIRST_LINE + head + b"\r\n" + data)
    got = b""
    while (event := connection.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.EndOfMessage):
            return got, True
        if isinstance(event, h11.Data):
            got += bytes(event.data)
    return got, False


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The same bytes in several packets."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.sampled_from([b"", b";a=b", b';a="c d"', b"  "]),
    st.sampled_from([b"", b"X-Sum: 1\r\n", b"A: b\r\nC: d\r\n"]),
    st.lists(st.integers(0, 400), max_size=8),
    st.booleans(),
)
def test_chunks_are_what_h11_takes_them_for(
    chunks: list[bytes], extension: bytes, trailers: bytes, places: list[int], whole: bool
) -> None:
    data = b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in chunks)
    data += b"0\r\n" + trailers + b"\r\n"
    data = data if whole else data[: sum(places) % len(data)]
    body = Body(200, CHUNKED)

    got = taken(body, *cut(data, places))

    assert (got, body.ended) == by_h11(b"Transfer-Encoding: chunked\r\n", data)


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5))
def test_a_length_is_kept_to(data: bytes, length: int, places: list[int]) -> None:
    body = Body(200, {"content-length": str(length)})

    got = taken(body, *cut(data, places))

    assert (got, body.ended) == by_h11(b"Content-Length: %d\r\n" % length, data)


def test_without_either_the_end_of_the_connection_is_the_end() -> None:
    body = Body(200, {})
    assert taken(body, b"all", b" of it") == b"all of it"
    assert not body.ended
    body.close()
    assert body.ended


@pytest.mark.parametrize("headers", [CHUNKED, {"content-length": "9"}])
def test_a_connection_that_ends_before_the_body_broke(headers: dict[str, str]) -> None:
    body = Body(200, headers)
    body.feed(b"5\r\nhel")
    with pytest.raises(BrokenError, match="complete"):
        body.close()


def test_answers_that_have_none() -> None:
    assert Body(204, {}).ended
    assert Body(200, {"content-length": "0"}).ended


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"5\nhello\n",
        b"\r\n5\r\nhello\r\n",
        b"5\r\nhello!\r\n",
        b"11111111111111111\r\n",
        b"5;" + b"a" * 20_000,
        b"0\r\n" + b"a" * 20_000,
    ],
)
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenError):
        taken(Body(200, CHUNKED), data)
