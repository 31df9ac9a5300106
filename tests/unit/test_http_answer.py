"""An answer, however its bytes are packed: held against h11."""

from __future__ import annotations

import gc
import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.inference.effects import BrokenError
from runtime.inference.http_answer import HttpAnswer

FIRST_LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = FIRST_LINE + b"Transfer-Encoding: chunked\r\n\r\n"
GOING_ON = b"HTTP/1.1 100 Continue\r\nX-Sum: 0\r\n\r\n"

Head = tuple[int, dict[str, str]] | None


def taken(answer: HttpAnswer, *pieces: bytes) -> bytes:
    return b"".join(answer.feed(piece) for piece in pieces if piece)


def begun(head: bytes) -> HttpAnswer:
    """An answer whose head has come."""
    answer = HttpAnswer()
    assert answer.feed(head) == b""
    assert answer.head is not None
    return answer


def head_of(answer: HttpAnswer) -> Head:
    return (answer.head.status, answer.head.headers) if answer.head else None


def by_h11(data: bytes) -> tuple[Head, bytes, bool]:
    """What h11 makes of it: head, body, and whether it takes it for the whole."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    if data:  # else the connection has ended
        connection.receive_data(data)
    head: Head = None
    got = b""
    while (event := connection.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.EndOfMessage):
            return head, got, True
        if isinstance(event, h11.Response):
            fields = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            head = event.status_code, fields
        if isinstance(event, h11.Data):
            got += bytes(event.data)
    return head, got, False


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The same bytes in several packets."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(
    st.integers(200, 599),
    st.sampled_from([b"OK", b"", b"Not at all \xe4"]),
    st.lists(
        st.tuples(
            st.sampled_from([b"X-A", b"x-a", b"Server", b"Keep-Alive"]),
            st.sampled_from([b"b", b"", b"  a b \t ", b"\xe4, \xf6", b"a:b;c"]),
        ),
        max_size=6,
    ),
    st.integers(0, 2),
    st.lists(st.integers(0, 400), max_size=8),
    st.booleans(),
)
def test_a_head_is_what_h11_takes_it_for(
    status: int,
    reason: bytes,
    fields: list[tuple[bytes, bytes]],
    informed: int,
    places: list[int],
    whole: bool,
) -> None:
    data = GOING_ON * informed + b"HTTP/1.1 %d %b\r\n" % (status, reason)
    data += b"".join(b"%b:%b\r\n" % field for field in [*fields, (b"Content-Length", b" 0")])
    data += b"\r\n"
    data = data if whole else data[: sum(places) % len(data)]
    answer = HttpAnswer()

    got = taken(answer, *cut(data, places))

    assert (head_of(answer), got, answer.ended) == by_h11(data)


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
    data = CHUNKED + (data if whole else data[: sum(places) % len(data)])
    answer = HttpAnswer()

    got = taken(answer, *cut(data, places))

    assert (head_of(answer), got, answer.ended) == by_h11(data)


@given(st.binary(max_size=60), st.integers(0, 60), st.lists(st.integers(0, 90), max_size=5))
def test_a_length_is_kept_to(data: bytes, length: int, places: list[int]) -> None:
    data = FIRST_LINE + b"Content-Length: %d\r\n\r\n" % length + data
    answer = HttpAnswer()

    got = taken(answer, *cut(data, places))

    assert (head_of(answer), got, answer.ended) == by_h11(data)


def test_without_either_the_end_of_the_connection_is_the_end() -> None:
    answer = begun(FIRST_LINE + b"\r\n")
    assert taken(answer, b"all", b" of it") == b"all of it"
    assert not answer.ended
    assert answer.feed(b"") == b""
    assert answer.ended


@pytest.mark.parametrize("head", [CHUNKED, FIRST_LINE + b"Content-Length: 9\r\n\r\n"])
def test_a_connection_that_ends_before_the_body_broke(head: bytes) -> None:
    answer = begun(head)
    answer.feed(b"5\r\nhel")
    with pytest.raises(BrokenError, match="complete"):
        answer.feed(b"")


@pytest.mark.parametrize("data", [b"", FIRST_LINE, GOING_ON])
def test_a_connection_that_ends_before_the_head_brought_no_answer(data: bytes) -> None:
    answer = HttpAnswer()
    taken(answer, data)
    with pytest.raises(BrokenError, match="without an answer"):
        answer.feed(b"")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        FIRST_LINE + b"Content-Length: 0\r\n\r\n",
    ],
)
def test_answers_that_have_none(head: bytes) -> None:
    assert begun(head).ended


@pytest.mark.parametrize(
    "head", [CHUNKED, CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")]
)
@pytest.mark.parametrize(
    "more", [b"junk", FIRST_LINE + b"Content-Length: 4\r\n\r\nmore", b"x" * 20_000]
)
def test_what_follows_an_answer_is_not_of_it(head: bytes, more: bytes) -> None:
    answer = begun(head)
    assert answer.feed(b"5\r\nhello\r\n0\r\n\r\n" + more) == b"hello"
    assert answer.ended
    assert answer.feed(more) == b""
    assert head_of(answer) == head_of(begun(head))


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
        taken(begun(CHUNKED), data)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        FIRST_LINE + b"no field\r\n\r\n",
        FIRST_LINE + b"A: \0\r\n\r\n",
        FIRST_LINE + b"\xe4: b\r\n\r\n",
        FIRST_LINE + b"Content-Length: -1\r\n\r\n",
        FIRST_LINE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n",
        FIRST_LINE + b"A: " + b"b" * 20_000,
    ],
)
def test_what_is_no_head_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenError):
        taken(HttpAnswer(), data)


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (FIRST_LINE, b"A: b\r\n"),
        (FIRST_LINE + b"A: ", b"b"),
        (b"", GOING_ON),
        (CHUNKED + b"5;a", b"a"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"A: b\r\n"),
    ],
)
def test_nothing_grows_without_bound(begin: bytes, again: bytes) -> None:
    answer = HttpAnswer()
    answer.feed(begin or again)
    with pytest.raises(BrokenError, match="does not end"):
        taken(answer, *[again] * (20_000 // len(again)))


def test_a_body_may_be_as_long_as_it_likes() -> None:
    answer = begun(CHUNKED)
    for _ in range(50_000):
        assert answer.feed(b"1\r\nx\r\n") == b"x"
    answer.feed(b"f4240\r\n")
    assert len(taken(answer, *[b"x" * 50_000] * 20)) == 10**6


@pytest.mark.parametrize("ends", [True, False])
def test_an_answer_is_freed_with_its_last_use(ends: bool) -> None:
    """To collect what holds itself is work too, and comes when it likes."""
    gc.collect()
    gc.disable()
    try:
        answer = begun(CHUNKED)
        answer.feed(b"1\r\nx\r\n")
        if ends:
            answer.feed(b"0\r\n\r\n")
        else:
            answer.close()
        del answer
        assert gc.collect() == 0
    finally:
        gc.enable()
