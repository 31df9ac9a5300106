"""The heads of HTTP/1.1: held against h11."""

from __future__ import annotations

import h11
import pytest

from runtime.inference import http_head
from runtime.inference.effects import BrokenError, HttpHead, HttpRequest

FINE = [
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\nServer: a b\r\n\r\n",
    b"HTTP/1.1 503 \r\nX-Empty:\r\nX-Padded: \t a \t\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\nServer: bare\n\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.1 200 In Ordnung\r\nX-Name: Grüße\r\n\r\n".encode("latin-1"),
]
MALFORMED = [
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 0200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSpace : a\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\r\x00\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
]


def by_h11(data: bytes) -> HttpHead:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    while isinstance(event := connection.next_event(), h11.InformationalResponse):
        pass
    assert isinstance(event, h11.Response)
    headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
    return HttpHead(status=event.status_code, headers=headers)


@pytest.mark.parametrize("data", FINE)
def test_a_head_is_read_as_h11_reads_it_wherever_it_is_cut(data: bytes) -> None:
    for end in range(len(data)):
        assert http_head.read(data[:end]) is None
    assert http_head.read(data + b"rest\r\n\r\n") == (by_h11(data), b"rest\r\n\r\n")


@pytest.mark.parametrize("data", MALFORMED)
def test_what_is_no_head_is_refused_as_h11_does(data: bytes) -> None:
    with pytest.raises((h11.RemoteProtocolError, AssertionError)):
        by_h11(data)
    with pytest.raises(BrokenError):
        http_head.read(data)


def test_a_request_is_written_as_h11_reads_it() -> None:
    request = HttpRequest(
        base_url="http://127.0.0.1:80/below", path="/v1?a=b", body=b"{}", api_key="k"
    )
    server = h11.Connection(h11.SERVER)
    server.receive_data(http_head.written(request, {"Authorization": "Bearer k"}) + b"{}")
    head, body, end = server.next_event(), server.next_event(), server.next_event()
    assert isinstance(head, h11.Request)
    assert (head.method, head.target) == (b"POST", b"/below/v1?a=b")
    assert dict(head.headers) == {
        b"host": b"127.0.0.1:80",
        b"authorization": b"Bearer k",
        b"content-length": b"2",
    }
    assert isinstance(body, h11.Data)
    assert isinstance(end, h11.EndOfMessage)


@pytest.mark.parametrize(
    ("path", "key"), [("/a b", "k"), ("/a\r\nX: y", "k"), ("/a", "k\r\nX: y"), ("/a", "ключ")]
)
def test_what_would_begin_a_line_of_its_own_is_not_written(path: str, key: str) -> None:
    request = HttpRequest(base_url="http://127.0.0.1", path=path, method="GET")
    with pytest.raises(BrokenError):
        http_head.written(request, {"Authorization": key})
