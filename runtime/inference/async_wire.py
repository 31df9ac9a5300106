"""The connection of one request on an event loop, asyncio's or trio's."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import anyio
import h11

from runtime.inference.connecting import headers, no_tls, tls_context
from runtime.inference.effects import (
    AbortedError,
    BrokenError,
    ExpiredError,
    HttpHead,
    UnreachableError,
)
from runtime.inference.http_body import Body
from runtime.inference.loop_stream import LoopStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

    from anyio.abc import ByteStream

    from runtime.inference.effects import Enter, HttpRequest, Open
    from runtime.inference.queueing import Place, SlotQueue

T = TypeVar("T")

_PACKET_BYTES = 64 * 1024
_SENT_BYTES = 256 * 1024
_PLAIN: Final = re.compile("[!-~]+")


class AsyncWire:
    """The connection of one request, made anew when the request is sent again, and its slot.

    Used by one task at a time; any task of the same event loop may :meth:`abort` it.

    Args:
        queue: Where it waits for a slot.
    """

    def __init__(self, queue: SlotQueue) -> None:
        self.aborted = False
        self._queue = queue
        self._place: Place | None = None
        self._scope: anyio.CancelScope | None = None
        self._stream: ByteStream | LoopStream | None = None
        self._body: Body | None = None
        self._came = b""

    async def open(self, effect: Open) -> HttpHead:
        """Connect, send, and wait for the head of the answer.

        Raises:
            WireError: That failed.
        """
        await self._disconnect()
        with _well_formed():
            pieces = _encoded(effect.request)
            first = next(pieces)
            self._stream = stream = await self._connect_here(effect, first)
            if stream is None:
                self._stream = stream = await self._connect(effect)
                await self._send(stream, first, effect.until)
            for piece in pieces:
                await self._send(stream, piece, effect.until)
            http = h11.Connection(h11.CLIENT)  # which only reads
            response = await self._event(stream, http, effect.until)
        if not isinstance(response, h11.Response):
            raise BrokenError("the connection was closed without an answer")
        if self._place is not None:
            self._place.begun()  # llama.cpp sends the head of a stream when a slot begins
        head = HttpHead(
            status=response.status_code,
            headers={name.decode("ascii"): _text(value) for name, value in response.headers},
        )
        self._body = Body(head.status, head.headers)
        self._came = self._body.feed(http.trailing_data[0])
        return head

    async def read(self, until: float) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            WireError: They did not come.
        """
        stream, body = self._stream, self._body
        if stream is None or body is None:
            return b""
        while not self._came and not body.ended:
            received = await self._received(stream, until)
            self._came = body.feed(received)
            if not received:
                body.close()
        came, self._came = self._came, b""
        return came

    @property
    def waits(self) -> bool:
        """Whether nothing of the body is here, and :meth:`each` can wait for it."""
        return isinstance(self._stream, LoopStream) and not (self._came or self._stream.has_news)

    async def each(self, step: Callable[[bytes], float | None], until: float) -> None:
        """Call ``step`` with each piece of the body, where the event loop has it.

        No task wakes for it, as one does for :meth:`read`.

        Args:
            step: Takes a piece, which is empty at the end; returns the instant by which the next
                must have come, or None when no more is wanted.
            until: The instant by which the first must have come.

        Raises:
            WireError: They did not come.
        """
        stream, body = self._stream, self._body
        if not isinstance(stream, LoopStream) or body is None:
            step(b"")
            return
        wanted: float | None = until

        def take(received: bytes) -> float | None:
            nonlocal wanted
            came = body.feed(received)
            if not received:
                body.close()
            if came:
                wanted = step(came)
            if body.ended and wanted is not None:
                wanted = step(b"")
            return wanted

        self.check()
        await stream.each(take, until)

    async def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            AbortedError: The wire was aborted meanwhile.
        """
        with self._within(None):
            await anyio.sleep(seconds)

    async def wait_for(self, awaited: Awaitable[T]) -> T:
        """What is awaited, unless the wire is aborted meanwhile.

        Raises:
            AbortedError: It was.
        """
        with self._within(None):
            return await awaited
        raise AssertionError  # pragma: no cover

    async def enter(self, effect: Enter) -> Place:
        """Wait in line for a slot.

        Raises:
            QueueFullError: The line is full.
            WireError: None was free in time, or the wire was aborted meanwhile.
        """
        self._leave()
        granted = anyio.Event()
        self._place = place = self._queue.enter(
            granted.set, bounded=effect.bounded, long=effect.long
        )
        if not place.granted:
            try:
                with self._within(effect.until):
                    await granted.wait()
            except ExpiredError:
                if not place.granted:
                    raise self._queue.still_queued(place) from None
        return place

    async def close(self) -> None:
        """Close the connection, which stops a server that still answers, and give the slot up."""
        try:
            await self._disconnect()
        finally:
            self._leave()

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._queue.leave(place)

    async def _disconnect(self) -> None:
        stream, self._stream, self._body, self._came = self._stream, None, None, b""
        if isinstance(stream, LoopStream):
            stream.close()
        elif stream is not None:
            with anyio.CancelScope(shield=True):  # it does not wait for the server
                await stream.aclose()

    def abort(self) -> None:
        """End the request: the task that waits on it is told at once."""
        self.aborted = True
        if self._scope is not None:
            self._scope.cancel()
        if isinstance(self._stream, LoopStream):
            self._stream.fail(AbortedError("closed"))

    async def _connect_here(self, effect: Open, first: bytes) -> ByteStream | LoopStream | None:
        """A connection within this machine, with its first bytes sent; None: it must wait."""
        parts = urlsplit(effect.request.base_url)
        if parts.scheme == "https" or not _on_asyncio():
            return None
        self.check()
        return await LoopStream.connect_here(parts.hostname or "", parts.port or 80, first)

    async def _connect(self, effect: Open) -> ByteStream | LoopStream:
        parts = urlsplit(effect.request.base_url)
        host = parts.hostname or ""
        until = min(effect.until, time.monotonic() + effect.connect_timeout_s)
        plain = parts.scheme != "https"
        try:
            with self._within(until):
                if plain:
                    connect = LoopStream.connect if _on_asyncio() else anyio.connect_tcp
                    return await connect(host, parts.port or 80)
                return await anyio.connect_tcp(
                    host,
                    parts.port or 443,
                    ssl_context=tls_context(),
                    tls_standard_compatible=False,
                )
        except ExpiredError as exc:
            raise ExpiredError(f"no connection to {host}", connecting=True) from exc
        except (OSError, UnicodeError, anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            if isinstance(exc, ssl.SSLError):
                raise no_tls(host, exc) from exc
            # anyio's "All connection attempts failed" tells less than its cause.
            raise UnreachableError(str(exc.__cause__ or exc) or f"no TLS with {host}") from exc
        raise AssertionError  # pragma: no cover

    async def _send(self, stream: ByteStream | LoopStream, data: bytes, until: float) -> None:
        if isinstance(stream, LoopStream):
            self.check()
            await stream.send(data, until)
            return
        with self._within(until), _translated():
            await stream.send(data)

    async def _received(self, stream: ByteStream | LoopStream, until: float) -> bytes:
        """The next bytes of a connection; none at its end."""
        if isinstance(stream, LoopStream):
            self.check()
            return await stream.receive(until)
        with self._within(until), _translated():
            try:
                return await stream.receive(_PACKET_BYTES)
            except anyio.EndOfStream:
                return b""
        raise AssertionError  # pragma: no cover

    async def _event(
        self, stream: ByteStream | LoopStream, http: h11.Connection, until: float
    ) -> object:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self._received(stream, until))
            elif not isinstance(event, h11.InformationalResponse):
                return event

    def check(self) -> None:
        """Raise AbortedError where the wire was aborted."""
        if self.aborted:
            raise AbortedError("closed")

    @contextlib.contextmanager
    def _within(self, until: float | None) -> Generator[None]:
        """Let what happens within take no longer than there is time, and be aborted."""
        with anyio.CancelScope() as scope:
            if until is not None:
                scope.deadline = anyio.current_time() + until - time.monotonic()
            self._scope = scope
            if self.aborted:
                scope.cancel()
            try:
                yield
            finally:
                self._scope = None
        self.check()
        if scope.cancelled_caught:
            raise ExpiredError("the deadline has passed")


def _on_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None  # trio as asyncio's guest has none
    except RuntimeError:  # no event loop of asyncio's
        return False


@contextlib.contextmanager
def _translated() -> Generator[None]:
    """Turns what streams raise into ours."""
    try:
        yield
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as exc:
        raise BrokenError(str(exc.__cause__ or exc) or type(exc).__name__) from exc


@contextlib.contextmanager
def _well_formed() -> Generator[None]:
    """Turns what h11 raises into ours."""
    try:
        yield
    except h11.ProtocolError as exc:
        raise BrokenError(str(exc)) from exc


def _encoded(request: HttpRequest) -> Iterator[bytes]:
    """The request in pieces: copying tens of megabytes at once would hold up the event loop."""
    parts = urlsplit(request.base_url)
    body = request.body or b""
    fields = {"Host": parts.netloc, **headers(request)}
    if request.body is not None:
        fields["Content-Length"] = str(len(body))
    target = parts.path + request.path
    if not all(map(_PLAIN.fullmatch, (target, parts.netloc, request.api_key or "none"))):
        raise BrokenError("the address or the key holds characters that HTTP cannot carry")
    lines = [f"{request.method} {target} HTTP/1.1", *map(": ".join, fields.items()), "", ""]
    piece = "\r\n".join(lines).encode("ascii")
    for start in range(0, max(len(body), 1), _SENT_BYTES):
        yield piece + body[start : start + _SENT_BYTES]
        piece = b""


def _text(value: bytes) -> str:
    return value.decode("latin-1")
