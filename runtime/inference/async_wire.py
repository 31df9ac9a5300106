"""The connection of one request on an event loop, asyncio's or trio's."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import ssl
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import anyio

from runtime.inference.connecting import headers, no_tls, tls_context
from runtime.inference.effects import (
    AbortedError,
    BrokenError,
    ExpiredError,
    UnreachableError,
)
from runtime.inference.http_answer import HttpAnswer
from runtime.inference.loop_stream import LoopStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

    from anyio.abc import ByteStream

    from runtime.inference.effects import Enter, HttpHead, HttpRequest, Open
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
        self._answer: HttpAnswer | None = None
        self._came = b""

    async def open(self, effect: Open) -> HttpHead:
        """Connect, send, and wait for the head of the answer.

        Raises:
            WireError: That failed.
        """
        await self._disconnect()
        pieces = _encoded(effect.request)
        first = next(pieces)
        self._stream = stream = await self._connect_here(effect, first)
        if stream is None:
            self._stream = stream = await self._connect(effect)
            await self._send(stream, first, effect.until)
        for piece in pieces:
            await self._send(stream, piece, effect.until)
        self._answer = answer = HttpAnswer()
        while answer.head is None:
            self._came = answer.feed(await self._received(stream, effect.until))
        if self._place is not None:
            self._place.begun()  # llama.cpp sends the head of a stream when a slot begins
        return answer.head

    async def read(self, until: float) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            WireError: They did not come.
        """
        stream, answer = self._stream, self._answer
        if stream is None or answer is None:
            return b""
        while not self._came and not answer.ended:
            self._came = answer.feed(await self._received(stream, until))
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
        stream, answer = self._stream, self._answer
        if not isinstance(stream, LoopStream) or answer is None or answer.ended:
            step(b"")
            return
        wanted: float | None = until

        def take(received: bytes) -> float | None:
            nonlocal wanted
            came = answer.feed(received)
            if came:
                wanted = step(came)
            if answer.ended and wanted is not None:
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
        stream, answer, self._came = self._stream, self._answer, b""
        self._stream = self._answer = None
        if answer is not None:
            answer.close()
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
        server = _server(effect.request.base_url)
        if server.secure or not _on_asyncio():
            return None
        self.check()
        return await LoopStream.connect_here(server.host, server.port, first)

    async def _connect(self, effect: Open) -> ByteStream | LoopStream:
        secure, host, port = _server(effect.request.base_url)
        until = min(effect.until, time.monotonic() + effect.connect_timeout_s)
        try:
            with self._within(until):
                if not secure:
                    connect = LoopStream.connect if _on_asyncio() else anyio.connect_tcp
                    return await connect(host, port)
                return await anyio.connect_tcp(
                    host, port, ssl_context=tls_context(), tls_standard_compatible=False
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


class _Server(NamedTuple):
    secure: bool
    host: str
    port: int


@functools.lru_cache(maxsize=64)  # the same few are asked all the time, here and below
def _server(base_url: str) -> _Server:
    parts = urlsplit(base_url)
    secure = parts.scheme == "https"
    return _Server(secure, parts.hostname or "", parts.port or (443 if secure else 80))


@functools.lru_cache(maxsize=64)
def _head(method: str, base_url: str, path: str, api_key: str | None, has_body: bool) -> bytes:
    """The head of a request, but for the length of its body."""
    parts = urlsplit(base_url)
    target = parts.path + path
    if not all(map(_PLAIN.fullmatch, (target, parts.netloc, api_key or "none"))):
        raise BrokenError("the address or the key holds characters that HTTP cannot carry")
    fields = {"Host": parts.netloc, **headers(api_key, has_body=has_body)}
    lines = [f"{method} {target} HTTP/1.1", *map(": ".join, fields.items()), ""]
    return "\r\n".join(lines).encode("ascii")


def _encoded(request: HttpRequest) -> Iterator[bytes]:
    """The request in pieces: copying tens of megabytes at once would hold up the event loop."""
    body = request.body or b""
    has_body = request.body is not None
    piece = _head(request.method, request.base_url, request.path, request.api_key, has_body)
    piece += b"Content-Length: %d\r\n\r\n" % len(body) if has_body else b"\r\n"
    for start in range(0, max(len(body), 1), _SENT_BYTES):
        yield piece + body[start : start + _SENT_BYTES]
        piece = b""
