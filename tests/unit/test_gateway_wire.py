"""The gateway's connections: real sockets, and clients that take their time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from runtime.gateway.http import WRITE_NOW
from runtime.gateway.rules import Rules
from runtime.gateway.security import Guard
from runtime.gateway.wire import TimedProtocol, uvicorn_options
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.alone

PATIENCE_S = 0.15


class Hasty(TimedProtocol):
    """Not as patient, for the sake of this test's time."""

    patience_s = PATIENCE_S


PIECES = [b"one", b"two" * 10, b"three"]
PLENTY = 64 * 2**20
LONGEST = 4000
"""Bytes of a head, and of what is between the chunks of a body."""


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    write_now = scope["extensions"][WRITE_NOW]
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in PIECES:
            if write_now is None or not write_now(piece):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})
        assert write_now is None or not write_now(b"beyond the end")
    elif scope["path"] == "/flood":
        assert not write_now(b"before the head")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sent = 0
        while sent < PLENTY and write_now(b"x" * 2**16):
            sent += 2**16
        await send({"type": "http.response.body", "body": b"%d sent" % sent})
    elif scope["path"] == "/told":
        told = f"{scope['headers']} {(await receive())['body']}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": told.encode()})
    elif scope["path"] == "/slow":
        await asyncio.sleep(PATIENCE_S * 3)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"slow"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})


@contextlib.contextmanager
def serving(protocol: type[TimedProtocol]) -> Iterator[int]:
    """A guarded application on a port of its own."""
    rules = Rules(max_body_bytes=1000, max_header_bytes=LONGEST // 2)
    options = {**uvicorn_options(rules), "http": protocol}
    config = uvicorn.Config(Guard(_app, rules), lifespan="off", log_config=None, **options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_until("it serves", lambda: server.started)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Hasty) as found:
        yield found


@pytest.fixture(scope="module")
def patient_port() -> Iterator[int]:
    """Where what is too long is not too slow as well."""
    with serving(TimedProtocol) as found:
        yield found


JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


def said(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """What the server says to some bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause_s)  # the client's slowness is the subject
        answer = b""
        try:
            while data := client.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def head(port: int, *lines: str) -> bytes:
    return "\r\n".join(("GET / HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines, "", "")).encode()


def test_an_answer_comes_back(port: int) -> None:
    assert b"fine" in said(port, head(port, "Connection: close"))


def test_pieces_that_are_written_at_once_are_chunks_in_their_order(port: int) -> None:
    whole = head(port, "Connection: close").replace(b"GET /", b"GET /stream")
    answer = said(port, whole).partition(b"\r\n\r\n")[2]
    expected = [b"%x\r\n%b\r\n" % (len(each), each) for each in [*PIECES, b"end", b""]]
    assert answer == b"".join(expected)


def test_http_1_0_gets_them_without_chunks(port: int) -> None:
    whole = head(port).replace(b"GET /", b"GET /stream").replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = said(port, whole).partition(b"\r\n\r\n")[2]
    assert answer == b"".join(PIECES) + b"end"


def test_nothing_more_is_written_at_once_to_a_client_that_does_not_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(head(port, "Connection: close").replace(b"GET /", b"GET /flood"))
        time.sleep(0.1)  # it does not read
        answer = b""
        while data := client.recv(2**20):
            answer = (answer + data)[-100:]
    sent = re.search(rb"(\d+) sent", answer)
    assert sent is not None
    assert 0 < int(sent[1]) < PLENTY


def test_a_slow_head_is_answered_while_it_comes_in_time(port: int) -> None:
    whole = head(port, "Connection: close")
    assert b"fine" in said(port, whole[:9], whole[9:], pause_s=PATIENCE_S / 4)


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_that_does_not_come_ends_the_connection(port: int, begun: bytes) -> None:
    began = time.monotonic()
    assert said(port, begun) == b""
    assert PATIENCE_S * 0.5 < time.monotonic() - began < 3


def test_a_second_head_that_does_not_come_ends_it_too(port: int) -> None:
    began = time.monotonic()
    assert said(port, head(port), b"GET /").count(b"200 OK") == 1
    assert said(port, head(port) + b"GET /").count(b"200 OK") == 1, "also in one packet"
    assert time.monotonic() - began < 4


def test_trickling_does_not_help(port: int) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(head(port)[:-2])
        with contextlib.suppress(OSError):  # reset, or a broken pipe
            for _ in range(200):
                client.sendall(b"X-A: b\r\n")
                time.sleep(0.02)  # the attacker's pace
    assert time.monotonic() - began < 3


def test_a_refused_body_is_read_to_its_end_so_that_the_client_sees_why(port: int) -> None:
    body = b"x" * 3_000_000
    request = (
        f"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    answer = said(port, request + body, head(port, "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"fine" in answer, "and the connection is as good as new"


def test_a_refused_body_without_end_ends_the_connection(port: int) -> None:
    request = (
        f"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        "Content-Length: 3000000\r\n\r\nx"
    ).encode()
    began = time.monotonic()
    assert said(port, request).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 3


def test_a_head_that_is_too_long_gets_431(port: int) -> None:
    for padding, sent_at_once in ((3000, True), (20000, False)):
        whole = head(port, "Connection: close", "X-A: " + "a" * padding)
        answer = said(port, whole) if sent_at_once else said(port, whole[:-1])
        assert answer.startswith(b"HTTP/1.1 431"), padding
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "headers_too_large"


def test_what_is_no_http_gets_an_error_of_the_same_shape(port: int) -> None:
    answer = said(port, b"\x16\x03\x01 nonsense\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_http"


@pytest.mark.parametrize("begun", [b"\x16\x03\x01\x02", b"GET / HTTP/1.1\nHost: a\n\n"])
def test_what_will_never_be_http_is_told_so_at_once(patient_port: int, begun: bytes) -> None:
    assert said(patient_port, begun).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "smuggled",
    [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -1",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: \x0bchunked",
        "X-A: b\r\n c",
        "X-A: b\nX-B: c",
        "X-A: b\rX-B: c",
        "X-A: b\x00c",
        "X A: b",
        ": b",
    ],
)
def test_ambiguous_heads_are_refused(port: int, smuggled: str) -> None:
    for before in (b"", head(port)):
        answer = said(port, before + head(port, JSON, smuggled) + b"0\r\n\r\n")
        statuses = re.findall(rb"HTTP/1.1 (\d+)", answer)
        assert statuses[:-1] == ([b"200"] if before else [])
        assert statuses[-1] in {b"400", b"501"}


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/0.9",
        "GET / HTTP/2.0",
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET http://elsewhere/ HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT elsewhere:80 HTTP/1.1",
        "DESCRIBE / RTSP/1.0",
    ],
)
def test_other_requests_than_those_of_http_1_are_refused(port: int, line: str) -> None:
    answer = said(port, head(port).replace(b"GET / HTTP/1.1", line.encode()) + head(port))
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("hosts", ["", "Host: elsewhere\r\n", "Host: {0}\r\nHost: {0}\r\n"])
def test_without_one_host_that_is_ours_nothing_is_answered(
    port: int, version: str, hosts: str
) -> None:
    named = hosts.format(f"127.0.0.1:{port}")
    answer = said(port, f"GET / HTTP/{version}\r\n{named}Connection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))


# --- bodies -------------------------------------------------------------------------------------

UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"


def post(port: int, path: str, *lines: str) -> bytes:
    return head(port, JSON, *lines).replace(b"GET /", b"POST " + path.encode())


@pytest.mark.parametrize(
    "size", [b"5x", b"0x5", b"+5", b"-5", b"", b" 5", b"10000000000000005", b"5;a\nb", b"4", b"6"]
)
def test_chunks_that_do_not_say_how_long_they_are_are_refused(port: int, size: bytes) -> None:
    body = size + b"\r\nhello\r\n0\r\n\r\n"
    answer = said(port, post(port, "/told", CHUNKED) + body + head(port))
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_chunks_end_in_two_bytes(port: int) -> None:
    answer = said(port, post(port, "/told", CHUNKED) + b"5\nhello\n0\n\n")
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("pause_s", [0.0, PATIENCE_S / 4])
@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Content-Length: 5"], b"hello"),
        ([CHUNKED], b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\n\r\n"),
        # Java's client asks each server for HTTP/2, in the head of its first request.
        ([UPGRADE, "Content-Length: 5"], b"hello"),
        ([UPGRADE, CHUNKED], b"5\r\nhello\r\n0\r\n\r\n"),
    ],
)
def test_bodies_come_whole_and_what_follows_is_the_next_request(
    port: int, lines: list[str], body: bytes, pause_s: float
) -> None:
    pieces = [post(port, "/told", *lines), body[:1], body[1:]]
    first = pieces if pause_s else [b"".join(pieces)]
    answers = said(port, *first, head(port, "Connection: close"), pause_s=pause_s or 0.05)
    assert re.findall(rb"b'hello'|fine", answers) == [b"b'hello'", b"fine"]


def test_trailers_are_no_headers(port: int) -> None:
    body = b"5\r\nhello\r\n0\r\nX-Trailer: a\r\nAuthorization: Bearer b\r\n\r\n"
    asked = [post(port, "/told", CHUNKED) + body, post(port, "/told", "Connection: close")]
    answer = said(port, *asked, pause_s=PATIENCE_S / 2).lower()
    assert answer.count(b"200 ok") == 2
    assert b"trailer'" not in answer
    assert b"authorization" not in answer


def test_blanks_behind_a_value_are_none_of_it(port: int) -> None:
    assert b"(b'x-a', b'b c')" in said(
        port, post(port, "/told", "X-A: \tb c \t", "Connection: close")
    )


def test_a_body_is_asked_for_when_it_is_wanted_and_only_of_http_1_1(port: int) -> None:
    lines = ["Expect: 100-continue", "Content-Length: 5", "Connection: close"]
    whole = post(port, "/told", *lines)
    answer = said(port, whole, b"hello", pause_s=PATIENCE_S / 4)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    older = said(port, whole.replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello")
    assert older.startswith(b"HTTP/1.1 200")
    refused = said(port, whole.replace(b"Length: 5", b"Length: 5000"))
    assert refused.startswith(b"HTTP/1.1 413")


def test_an_answer_without_a_body_gets_none_of_its_pieces(port: int) -> None:
    asked = head(port).replace(b"GET /", b"HEAD /stream") + head(port, "Connection: close")
    assert said(port, asked).partition(b"\r\n\r\n")[2].startswith(b"HTTP/1.1 200")


# --- one request behind the other ---------------------------------------------------------------


def test_requests_that_do_not_wait_for_answers_get_them_in_their_order(port: int) -> None:
    slow = head(port).replace(b"GET /", b"GET /slow")
    sized = post(port, "/told", "Content-Length: 5") + b"hello"
    asked = slow + head(port) + sized + slow + head(port, "Connection: close") + head(port)
    for pieces in ([asked], [asked[:300], asked[300:]], [asked[:-400], asked[-400:]]):
        answers = re.findall(rb"slow|fine|b'hello'", said(port, *pieces, pause_s=PATIENCE_S / 4))
        assert answers == [b"slow", b"fine", b"b'hello'", b"slow", b"fine"]


def test_what_follows_the_last_chunk_at_once_must_come_again(port: int) -> None:
    """The end of such a body cannot be told from without; nobody is known to do this."""
    body = b"5\r\nhello\r\n0\r\n\r\n"
    answer = said(port, post(port, "/told", CHUNKED) + body + head(port))
    assert b"b'hello'" in answer
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_what_is_no_http_is_told_so_in_its_turn(port: int) -> None:
    answer = said(port, head(port).replace(b"GET /", b"GET /slow") + b"nonsense\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"400"]


def test_no_more_is_read_than_is_answered(port: int) -> None:
    many = head(port) * (2**20 // len(head(port)))
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        client.sendall(head(port).replace(b"GET /", b"GET /slow"))
        with contextlib.suppress(TimeoutError):
            while sent < PLENTY:
                sent += client.send(many)
    assert sent < PLENTY


# --- what has no end ----------------------------------------------------------------------------


def in_pieces(port: int, data: bytes, size: int) -> socket.socket:
    """A connection over which some bytes are sent, each few a packet."""
    client = socket.create_connection(("127.0.0.1", port), timeout=5)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, len(data), size):
        client.sendall(data[start : start + size])
    return client


def is_cut_off(client: socket.socket, more: bytes) -> bool:
    until = time.monotonic() + 5
    try:
        while time.monotonic() < until:
            client.sendall(more)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("size", [1, 1000, LONGEST + 1])
@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\nX-A", b"a"),
        (b"GET / HTTP/1.1\r\nX-A: ", b"a"),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n"),
    ],
)
def test_a_head_without_end_gets_431(
    patient_port: int, begun: bytes, more: bytes, size: int
) -> None:
    data = (begun + more * LONGEST)[: LONGEST + 1]
    with in_pieces(patient_port, data, size) as client:
        assert client.recv(65536).startswith(b"HTTP/1.1 431")


def test_a_head_that_comes_in_one_piece_may_be_no_longer(patient_port: int) -> None:
    room = LONGEST - len(head(patient_port, "Connection: close"))
    for over in (0, 1):
        line = b"GET /" + b"a" * (room + over)
        answer = said(patient_port, head(patient_port, "Connection: close").replace(b"GET /", line))
        assert answer.startswith(b"HTTP/1.1 431" if over else b"HTTP/1.1 200")


@pytest.mark.parametrize("size", [1, 1000, 2**18])
@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"", b"0"),
        (b"5;a", b"b"),
        (b"5;a=", b"b"),
        (b"5", b";a=b"),
        (b"5\r\nhello\r\n0\r\nX-A", b"a"),
        (b"5\r\nhello\r\n0\r\nX-A: ", b"a"),
        (b"5\r\nhello\r\n0\r\n", b"X-A: b\r\n"),
    ],
)
def test_a_body_whose_framing_has_no_end_ends_the_connection(
    patient_port: int, begun: bytes, more: bytes, size: int
) -> None:
    more *= -(-size // len(more))
    with in_pieces(patient_port, post(patient_port, "/told", CHUNKED) + begun, 1000) as client:
        assert is_cut_off(client, more)


def test_chunks_may_be_many_and_their_framing_longer_than_a_head_together(port: int) -> None:
    body = b"1;a=b\r\nx\r\n" * 900 + b"0\r\nX-A: b\r\n\r\n"
    assert len(body) > 2 * LONGEST
    assert b"x" * 900 in said(port, post(port, "/told", CHUNKED, "Connection: close") + body)


def test_each_body_may_have_as_much_framing(port: int) -> None:
    long = b"a" * (LONGEST - 100)
    pieces = [b"5;" + long, b"\r\nhello\r\n", b"0\r\nX-A: " + long + b"\r\n\r\n"]
    asked = [post(port, "/told", CHUNKED), *pieces] * 2
    answer = said(port, *asked, pause_s=PATIENCE_S / 4)
    assert answer.count(b"b'hello'") == 2
