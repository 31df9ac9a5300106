"""What the async client sends: written by hand, held against h11."""

from __future__ import annotations

import h11
import pytest

from runtime.inference.async_wire import _encoded
from runtime.inference.effects import BrokenError, HttpRequest


def read_by_h11(sent: bytes) -> tuple[h11.Request, bytes]:
    server = h11.Connection(h11.SERVER)
    server.receive_data(sent)
    head = server.next_event()
    assert isinstance(head, h11.Request)
    body = b""
    while isinstance(event := server.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert server.trailing_data == (b"", False)
    return head, body


@pytest.mark.parametrize("body", [None, b"", b"{}", bytes(700_000)])
def test_a_request_is_what_h11_reads_of_it(body: bytes | None) -> None:
    request = HttpRequest(
        base_url="http://[::1]:8080/prefix",
        path="/v1/models?x=%20",
        method="GET" if body is None else "POST",
        body=body,
        api_key="a-key",
    )
    pieces = list(_encoded(request))
    assert max(map(len, pieces)) < 300_000, "copying all at once holds up the event loop"
    head, read = read_by_h11(b"".join(pieces))
    assert (head.method.decode(), head.target) == (request.method, b"/prefix/v1/models?x=%20")
    assert read == (body or b"")
    fields = dict(head.headers)
    assert fields[b"host"] == b"[::1]:8080"
    assert fields[b"authorization"] == b"Bearer a-key"
    assert fields[b"connection"] == b"close"
    assert (b"content-length" in fields) is (body is not None)


@pytest.mark.parametrize(
    ("base_url", "path", "key"),
    [
        ("http://127.0.0.1:1", "/a b", None),
        ("http://127.0.0.1:1", "/a\r\nX: y", None),
        ("http://127.0.0.1:1", "/ä", None),
        ("http://127.0.0.1:1", "/", "key\r\nX: y"),
        ("http://hä:1", "/", None),
    ],
)
def test_what_http_cannot_carry_is_not_sent(base_url: str, path: str, key: str | None) -> None:
    request = HttpRequest(base_url=base_url, path=path, api_key=key, body=b"{}")
    with pytest.raises(BrokenError, match="cannot carry"):
        next(_encoded(request))
