"""The gateway's connections: real sockets, and clients that take their time."""

from __future__ import annotations

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
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A guarded application on a port of its own."""
    rules = Rules(max_body_bytes=1000, max_header_bytes=2000)
    options = {**uvicorn_options(rules), "http": Hasty}
    config = uvicorn.Config(Guard(_app, rules), lifespan="off", log_config=None, **options)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_until("it serves", lambda: server.started)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(10)


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


@pytest.mark.parametrize(
    "smuggled",
    [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -1",
        "Transfer-Encoding: chunked, identity",
    ],
)
def test_ambiguous_bodies_are_refused(port: int, smuggled: str) -> None:
    answer = said(port, head(port, smuggled))
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
