"""The sync driver: performs the effects of a flow over HTTP, one connection a request.

It sits on httpcore2, the core of httpx2, because two things are needed that httpx2 does not offer:
deadlines that are instants rather than a silence between two packets (a server may keep a line open
with comments while its engine hangs), and ending a request from another thread, at any moment.

Connections are not reused. llama.cpp's server closes the connection after a streamed answer without
saying so, which fails 10 to 20 % of the requests of a client that reuses it; and each idle
connection holds one of its threads. A connection on loopback costs a tenth of a millisecond.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpcore2

from runtime.inference.effects import (
    AbortedError,
    BrokenError,
    Emit,
    ExpiredError,
    HttpHead,
    Locate,
    Open,
    Read,
    UnreachableError,
    WireError,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Iterable, Iterator

    from runtime.contracts import LLMDelta
    from runtime.engines.base import Endpoint
    from runtime.inference.effects import Flow, HttpRequest

T = TypeVar("T")

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Wire:
    """The connection of one request, made anew when the request is sent again.

    Used by one thread at a time; any thread may :meth:`abort` it.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self._aborted = threading.Event()
        self._stream: httpcore2.NetworkStream | None = None
        self._connection: httpcore2.HTTPConnection | None = None
        self._body: Iterator[bytes] = iter(())

    def open(self, effect: Open) -> HttpHead:
        """Connect, send, and wait for the head of the answer.

        Raises:
            WireError: That failed.
        """
        self.close()
        request, self.until = effect.request, effect.until
        url = httpcore2.URL(request.base_url + request.path)
        self._connection = httpcore2.HTTPConnection(
            url.origin, network_backend=_Backend(self, effect.connect_timeout_s)
        )
        wanted = httpcore2.Request(
            request.method, url, headers=_headers(request), content=request.body or b""
        )
        with _Translated(self):
            response = self._connection.handle_request(wanted)
            self._body = response.iter_stream()
        return HttpHead(
            status=response.status,
            headers={
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers
            },
        )

    def read(self, until: float) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            WireError: They did not come.
        """
        self.until = until
        with _Translated(self):
            return next(self._body, b"")

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            AbortedError: The wire was aborted meanwhile.
        """
        if self._aborted.wait(seconds):
            raise AbortedError("closed")

    def close(self) -> None:
        """Close the connection; a server that still answers stops."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """End the request from another thread: whoever waits on it is told at once."""
        self._aborted.set()
        stream = self._stream
        if stream is not None:
            _shut_down(stream)

    @property
    def aborted(self) -> bool:
        """Whether :meth:`abort` was called."""
        return self._aborted.is_set()

    def adopt(self, stream: httpcore2.NetworkStream) -> None:
        """Take the stream that was just connected."""
        self._stream = stream
        if self.aborted:  # while it was being connected
            _shut_down(stream)


class Switchboard:
    """The requests a client has under way. Any thread may close it, which ends them all."""

    def __init__(self) -> None:
        self._wires: set[Wire] = set()
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def connected(self, wire: Wire) -> Generator[None]:
        """Count ``wire`` among them for the time being; closes its connection in the end."""
        with self._lock:
            self._wires.add(wire)
            if self._closed:
                wire.abort()
        try:
            yield
        finally:
            with self._lock:
                self._wires.discard(wire)
            wire.close()

    def close(self) -> None:
        """End every request under way, and each one to come; safe to call twice."""
        with self._lock:
            self._closed = True
            wires = list(self._wires)
        for wire in wires:
            wire.abort()


class _Translated:
    """Turns httpcore2's exceptions into ours. A class, for it is entered for every packet."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is None:
            if self._wire.aborted:  # the end that abort() made looks like any other
                raise AbortedError("closed")
            return
        if self._wire.aborted:
            raise AbortedError("closed") from exc
        why = str(exc) or type(exc).__name__
        if isinstance(exc, httpcore2.ConnectTimeout):
            raise ExpiredError(why, connecting=True) from exc
        if isinstance(exc, httpcore2.TimeoutException):
            raise ExpiredError(why) from exc
        if isinstance(exc, httpcore2.ConnectError | UnicodeError):  # a host name IDNA cannot encode
            raise UnreachableError(why) from exc
        if isinstance(exc, httpcore2.NetworkError | httpcore2.ProtocolError):
            raise BrokenError(why) from exc


class _Backend(httpcore2.NetworkBackend):
    """Connects, and hands the stream to its wire."""

    def __init__(self, wire: Wire, connect_timeout_s: float) -> None:
        self._wire = wire
        self._connect_timeout_s = connect_timeout_s
        self._inner = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the wire knows
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        stream = self._inner.connect_tcp(
            host,
            port,
            timeout=self._connect_timeout_s,
            local_address=local_address,
            socket_options=socket_options,
        )
        self._wire.adopt(stream)
        return _Stream(stream, self._wire)


class _Stream(httpcore2.NetworkStream):
    """A stream whose reads and writes end at the wire's instant."""

    def __init__(self, inner: httpcore2.NetworkStream, wire: Wire) -> None:
        self._inner = inner
        self._wire = wire

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        left = self._wire.until - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the deadline has passed")
        return self._inner.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        left = self._wire.until - time.monotonic()
        if left <= 0:
            raise httpcore2.WriteTimeout("the deadline has passed")
        self._inner.write(buffer, left)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        left = max(0.001, self._wire.until - time.monotonic())
        secured = self._inner.start_tls(ssl_context, server_hostname, left)
        self._wire.adopt(secured)
        return _Stream(secured, self._wire)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def iterate(
    flow: Flow[T], *, locate: Callable[[float], Endpoint], board: Switchboard, wire: Wire
) -> Generator[LLMDelta, None, T]:
    """Perform a flow; yields what it emits and returns what it returns.

    Closing the generator closes the connection, which cancels the answer.
    """
    result: object = None
    failure: WireError | None = None
    with contextlib.closing(flow), board.connected(wire):
        while True:
            try:
                effect = flow.send(result) if failure is None else flow.throw(failure)
            except StopIteration as stop:
                done: T = stop.value
                return done
            result = failure = None
            if isinstance(effect, Emit):
                yield effect.item
                continue
            try:
                if isinstance(effect, Read):
                    result = wire.read(effect.until)
                elif isinstance(effect, Open):
                    result = wire.open(effect)
                elif isinstance(effect, Locate):
                    result = locate(effect.timeout_s)
                else:
                    wire.pause(effect.seconds)
            except WireError as exc:
                failure = exc


def run(flow: Flow[T], *, locate: Callable[[float], Endpoint], board: Switchboard) -> T:
    """Perform a flow to its end, whatever it emits."""
    steps = iterate(flow, locate=locate, board=board, wire=Wire())
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            done: T = stop.value
            return done


def _headers(request: HttpRequest) -> list[tuple[bytes, bytes]]:
    parts = urlsplit(request.base_url)
    headers = [
        (b"Host", parts.netloc.encode("ascii", "replace")),
        (b"User-Agent", b"llama-runtime"),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]
    if request.body is not None:
        headers += [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", str(len(request.body)).encode()),
        ]
    if request.api_key:
        headers.append((b"Authorization", b"Bearer " + request.api_key.encode()))
    return headers


def _shut_down(stream: httpcore2.NetworkStream) -> None:
    sock = stream.get_extra_info("socket")
    if isinstance(sock, socket.socket):
        try:
            # Not SSLSocket's own method, which takes the TLS state away from who reads just now.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # it ended by itself, or its thread closed it just now
