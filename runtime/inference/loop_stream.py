"""A plain TCP connection of asyncio's, whose bytes can be taken where the event loop has them.

anyio's streams wake a task for each packet, and stop and resume the reading around it: three turns
of the event loop and four calls to the system a token, where one of each is enough. With it comes
a deadline that costs nothing as long as it is only moved ahead.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Final, cast

from runtime.inference.effects import BrokenError, ExpiredError

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.inference.effects import WireError

_MOST_WAITING_BYTES: Final = 256 * 1024
"""More than this is left with the system, which makes the server wait."""

_SLACK_S: Final = 0.001
"""uvloop rounds to milliseconds, and what is told of a deadline must be told after it."""

_PACKET_BYTES: Final = 64 * 1024

_NEXT_ADDRESS_S: Final = 0.25
"""After so long the next address of a name is tried as well (RFC 8305, section 8)."""


class LoopStream(asyncio.BufferedProtocol):
    """A connection of one task of an asyncio event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_PACKET_BYTES))
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self._paused = False
        self._full = False
        self._lost: BrokenError | None = None
        self._ended = False
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._step: Callable[[bytes], float | None] | None = None
        self._over: asyncio.Future[None] | None = None
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_until = 0.0

    @classmethod
    async def connect(cls, host: str, port: int) -> LoopStream:
        """A connection to a server.

        Raises:
            OSError: There is none to be had.
        """
        loop = asyncio.get_running_loop()
        # A race between addresses takes tasks of its own, which a single one needs not. uvloop has
        # none, and tries one after the other.
        if _address(host) or not isinstance(loop, asyncio.BaseEventLoop):
            _, stream = await loop.create_connection(cls, host, port)
        else:
            _, stream = await loop.create_connection(
                cls, host, port, happy_eyeballs_delay=_NEXT_ADDRESS_S
            )
        return stream

    @classmethod
    async def connect_here(cls, host: str, port: int, first: bytes) -> LoopStream | None:
        """A connection to a server on this machine, to which the first bytes are sent already.

        The server has them before the event loop turns: requests that come together are not all
        with it only when the last of them is ready.

        Returns:
            None where the server is elsewhere, or the connection must wait or cannot be made;
            nothing is sent then.
        """
        if not _is_here(host):
            return None
        made = _at_once(host, port)
        try:
            sent = made.send(first)
        except OSError:  # not connected yet is EAGAIN to Linux, ENOTCONN to macOS
            made.close()
            return None
        transport, stream = await asyncio.get_running_loop().create_connection(cls, sock=made)
        if sent < len(first):
            transport.write(first[sent:])
        return stream

    # --- for a task ---------------------------------------------------------------------------

    async def send(self, data: bytes, until: float) -> None:
        """Send; waits while the server takes nothing, until that instant.

        Raises:
            BrokenError: The connection is gone.
            ExpiredError: It took too long.
        """
        assert self._transport is not None  # noqa: S101 - it is connected before anyone has it
        if self._lost is None and not self._ended:
            self._transport.write(data)
        if self._full and not self._ended:
            self._room = self._loop.create_future()
            self._await_by(until)
            try:
                await self._room
            finally:
                self._room = None
        if self._lost is not None:
            raise self._lost

    async def receive(self, until: float) -> bytes:
        """All that has come, waited for until that instant if need be; empty at the end.

        Raises:
            BrokenError: The connection broke.
            ExpiredError: Nothing came in time.
        """
        if not self._pieces and not self._ended:
            self._news = self._loop.create_future()
            self._await_by(until)
            try:
                await self._news
            finally:
                self._news = None
        return self._taken()

    def close(self) -> None:
        """Close at once; what is not sent yet is not sent any more."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    @property
    def has_news(self) -> bool:
        """Whether :meth:`receive` would not wait."""
        return bool(self._pieces) or self._ended

    async def each(self, step: Callable[[bytes], float | None], until: float) -> None:
        """Call ``step`` with what comes, where it comes, until it wants no more.

        Args:
            step: Takes bytes, none at the end; returns the instant by which the next must have
                come, or None when no more is wanted. What it raises is raised here.
            until: The instant by which the first must have come.

        Raises:
            BrokenError: The connection broke.
            ExpiredError: Nothing came in time.
        """
        self._step = step
        self._over = self._loop.create_future()
        self._await_by(until)
        try:
            await self._over
        finally:
            self._over = self._step = None

    def fail(self, why: WireError) -> None:
        """Let whoever waits for something raise this."""
        for awaited in (self._over, self._news, self._room):
            if awaited is not None and not awaited.done():
                awaited.set_exception(why)

    # --- for the event loop -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def get_buffer(self, _: int) -> memoryview:
        """Where the next bytes go: asyncio's own way allocates 256 KiB for each token."""
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        """Bytes have come."""
        data = bytes(self._buffer[:size])
        if self._over is not None and not self._over.done():
            self._give(data, self._over)
            return
        self._pieces.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _MOST_WAITING_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()
        self._wake(self._news)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, or broken."""
        self._ended = True
        if exc is not None:
            self._lost = BrokenError(str(exc) or type(exc).__name__)
        self._wake(self._news)
        self.resume_writing()
        if self._over is not None and not self._over.done():
            if self._lost is None:
                self._give(b"", self._over)
            else:
                self.fail(self._lost)
        self._stop_timer()

    def pause_writing(self) -> None:
        """The server takes nothing for now."""
        self._full = True

    def resume_writing(self) -> None:
        """It takes more."""
        self._full = False
        self._wake(self._room)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _taken(self) -> bytes:
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        if not data and self._lost is not None:
            raise self._lost
        return data

    def _give(self, data: bytes, over: asyncio.Future[None]) -> None:
        assert self._step is not None  # noqa: S101 - as long as it is not over
        try:
            until = self._step(data)
        except BaseException as exc:  # noqa: BLE001 - the top of a callback; it is raised in each()
            over.set_exception(exc)
            return
        if until is None:
            over.set_result(None)
        else:
            self._await_by(until)

    def _await_by(self, until: float) -> None:
        """Let something come by an instant; a timer that rings too early is set again then."""
        self._until = until
        if self._timer is not None:
            if self._timer_until <= until:
                return
            self._timer.cancel()
        self._timer_until = until
        self._timer = self._loop.call_later(until - time.monotonic() + _SLACK_S, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._over is None and self._news is None and self._room is None:
            return
        if time.monotonic() < self._until:
            self._await_by(self._until)
        else:
            self.fail(ExpiredError("the deadline has passed"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@functools.lru_cache(maxsize=64)
def _is_here(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_loopback


def _at_once(host: str, port: int) -> socket.socket:
    """A connection within this machine, which is there already, nearly always.

    The call does not say so, but what is sent next does; the event loop needs three turns.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setblocking(False)
    made.connect_ex((host, port))
    return made
