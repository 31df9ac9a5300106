"""Handing a request on to an engine, and its answer back."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import h11

from runtime.errors import ConnectionLostError
from runtime.testing.events import whole_events
from runtime.testing.relay import EVENT_STREAM, CutError, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.engines.base import Endpoint
    from runtime.testing.relay import Asked

COMEBACK_S: Final = 30.0
"""How long an engine that is being restarted is waited for."""

_PACKET_BYTES: Final = 65536
_CONNECT_S: Final = 5.0
_RETRY_S: Final = 0.02


class Upstream(Protocol):
    """Whoever knows where an engine is."""

    def endpoint(self, timeout_s: float) -> Endpoint:
        """Where it is now; waits while it is being restarted.

        Raises:
            LLMProviderError: There is none, or not in time.
        """
        ...


def forward(asked: Asked, upstream: Upstream) -> Reply:
    """The engine's answer to a request.

    Raises:
        LLMProviderError: There is no engine.
        CutError: It ended before it answered.
        HungUpError: The client did.
    """
    endpoint, connection = _connect(upstream)
    http = h11.Connection(h11.CLIENT)
    body = b"" if asked.body is None else json.dumps(asked.body, ensure_ascii=False).encode()
    headers = [
        ("Host", urlsplit(endpoint.base_url).netloc),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    if endpoint.api_key:
        headers.append(("Authorization", f"Bearer {endpoint.api_key}"))
    request = h11.Request(method=asked.method, target=asked.path, headers=headers)
    sent = [request, h11.Data(data=body), h11.EndOfMessage()]
    events = _events(http, connection, asked)
    try:
        connection.sendall(b"".join(http.send(each) or b"" for each in sent))
        head = next(event for event in events if isinstance(event, h11.Response))
    except OSError as exc:
        connection.close()
        raise CutError from exc
    except BaseException:  # whatever it is, nobody else would close it
        connection.close()
        raise
    fields = dict(head.headers.raw_items())
    media = {name.lower(): value for name, value in fields.items()}.get(b"content-type", b"")
    content_type = media.decode("latin-1") or "application/octet-stream"
    pieces = (bytes(event.data) for event in events if isinstance(event, h11.Data))
    return Reply(
        status=head.status_code,
        content_type=content_type,
        pieces=whole_events(pieces) if content_type.startswith(EVENT_STREAM) else pieces,
        close=connection.close,
    )


def _connect(upstream: Upstream) -> tuple[Endpoint, socket.socket]:
    until = time.monotonic() + COMEBACK_S
    while True:
        endpoint = upstream.endpoint(max(0.0, until - time.monotonic()))
        parts = urlsplit(endpoint.base_url)
        try:
            connection = socket.create_connection((parts.hostname, parts.port), _CONNECT_S)
        except OSError as exc:
            # It has just ended, and its manager has not noticed yet.
            if time.monotonic() > until:
                raise ConnectionLostError(
                    f"Nothing answers at {endpoint.base_url}: {exc}."
                ) from exc
            time.sleep(_RETRY_S)  # within the deadline above
            continue
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return endpoint, connection


def _events(http: h11.Connection, connection: socket.socket, asked: Asked) -> Iterator[h11.Event]:
    """What the engine answers, until its end."""
    while True:
        try:
            event = http.next_event()
            if not isinstance(event, h11.Event):
                asked.peer.wait_for(connection)
                http.receive_data(connection.recv(_PACKET_BYTES))
                continue
        except (OSError, h11.RemoteProtocolError) as exc:  # it ended in the middle
            raise CutError from exc
        if isinstance(event, h11.ConnectionClosed):
            raise CutError
        yield event
        if isinstance(event, h11.EndOfMessage):
            return
