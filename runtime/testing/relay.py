"""A small HTTP server on loopback, between the clients of a test and the engine.

What comes in is handed to one function, and what that yields is written out, piece by piece. There
tests look at requests, answers are recorded and replayed, and faults are injected.
"""

from __future__ import annotations

import contextlib
import json
import logging
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import h11

from runtime.errors import LLMError

log = logging.getLogger(__name__)

JSON_TYPE: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"

_PACKET_BYTES: Final = 65536
_ABORT: Final = struct.pack("ii", 1, 0)  # SO_LINGER with no time: the end is a reset
_IDLE_S: Final = 60.0


class CutError(Exception):
    """The connection to the client is to end as if the server had been killed."""


class HungUpError(Exception):
    """The client closed its connection."""


class Peer:
    """The client's end of one connection, as what answers it needs to know it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def wait_for(self, other: socket.socket | None, timeout_s: float | None = None) -> bool:
        """Wait until another socket is readable; False when the time is up first.

        Raises:
            HungUpError: The client hung up before that.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if other is not None:
                selector.register(other, selectors.EVENT_READ)
            ready = {key.fileobj for key, _ in selector.select(timeout_s)}
        if other in ready or not ready:
            return bool(ready)
        # Nothing that a client may say before its answer is of use: it has gone, or will be cut.
        raise HungUpError


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it arrived.

    Attributes:
        method: ``GET`` or ``POST``.
        path: The path, without a query.
        body: The body as JSON; None when there is none, or it is no JSON.
        key: The bearer token it came with.
        peer: Who asks.
    """

    method: str
    path: str
    body: Any = None
    key: str | None = field(default=None, repr=False)
    peer: Peer = field(repr=False, compare=False)


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer.

    Attributes:
        status: The HTTP status.
        content_type: The media type.
        pieces: The body; of an event stream one whole event each.
        headers: Further header fields.
        close: Lets go of what it comes from, however far it was read.
    """

    status: int
    pieces: Iterator[bytes]
    content_type: str = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()
    close: Callable[[], None] = _nothing

    @property
    def streams(self) -> bool:
        """Whether it is an event stream."""
        return self.content_type.startswith(EVENT_STREAM)


Handler: TypeAlias = Callable[[Asked], Reply]


def json_reply(status: int, value: object, **headers: str) -> Reply:
    """An answer with a JSON body."""
    return Reply(
        status=status,
        pieces=iter([json.dumps(value, ensure_ascii=False).encode()]),
        headers=tuple((name.replace("_", "-"), text) for name, text in headers.items()),
    )


def error_reply(status: int, message: str, kind: str, **headers: str) -> Reply:
    """An answer with an error in OpenAI's form."""
    error = {"message": message, "type": kind, "code": status}
    return json_reply(status, {"error": error}, **headers)


class Relay:
    """The server; runs from its making to :meth:`close`, a thread for each connection.

    Attributes:
        base_url: Its address.
    """

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="llama-relay", daemon=True).start()

    def close(self) -> None:
        """Take no further connection; those that are open end by themselves."""
        with contextlib.suppress(OSError):  # some systems refuse that for a listener
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it was closed
                return
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="llama-relay-answer", daemon=True
            )
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_IDLE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._answer(connection)
            except (HungUpError, OSError, h11.RemoteProtocolError) as exc:
                log.debug("a client went: %r", exc)
            except CutError:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)

    def _answer(self, connection: socket.socket) -> None:
        http = h11.Connection(h11.SERVER)
        asked = _read(http, connection)
        if asked is None:
            return
        try:
            reply = self._handle(asked)
        except LLMError as exc:
            reply = error_reply(502, f"{type(exc).__name__}: {exc}", "unavailable_error")
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(reply.close)
            if isinstance(reply.pieces, Generator):
                cleanup.callback(reply.pieces.close)  # who records learns that it was cut off
            headers = [
                ("Content-Type", reply.content_type),
                ("Transfer-Encoding", "chunked"),
                ("Connection", "close"),
                *reply.headers,
            ]
            head = h11.Response(status_code=reply.status, headers=headers, reason=b"Relayed")
            connection.sendall(http.send(head) or b"")
            for piece in reply.pieces:
                connection.sendall(http.send(h11.Data(data=piece)) or b"")
            connection.sendall(http.send(h11.EndOfMessage()) or b"")


def _read(http: h11.Connection, connection: socket.socket) -> Asked | None:
    """The request that comes on a connection; None when none does."""
    request: h11.Request | None = None
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                going_on = h11.InformationalResponse(status_code=100, headers=[])
                connection.sendall(http.send(going_on) or b"")
            http.receive_data(connection.recv(_PACKET_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return _asked(request, body, Peer(connection))
        else:
            return None


def _asked(request: h11.Request, body: bytes, peer: Peer) -> Asked:
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}
    scheme, _, token = fields.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else fields.get("x-api-key")
    value: object = None
    if body:
        with contextlib.suppress(ValueError):
            value = json.loads(body)
    return Asked(
        method=request.method.decode("ascii"),
        path=request.target.decode("latin-1").partition("?")[0],
        body=value,
        key=key,
        peer=peer,
    )
