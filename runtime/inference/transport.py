"""The sync driver: performs the effects of a flow over HTTP, one connection a request.

It sits on the standard library's http.client. Two things are needed that httpx2 does not offer:
deadlines that are instants rather than a silence between two packets (a server may keep a line open
with comments while its engine hangs), and ending a request from another thread, at any moment. And
engine and client share the processor: what a library spends on each packet is taken from the
engine. Here that is half of what httpx2's own core, httpcore2, needs.

Connections are not reused. llama.cpp's server closes the connection after a streamed answer without
saying so, which fails 10 to 20 % of the requests of a client that reuses it; and each idle
connection holds one of its threads. A connection on loopback costs a tenth of a millisecond.
"""

from __future__ import annotations

import contextlib
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from runtime.errors import LLMError, RequestTimeoutError
from runtime.inference.connecting import connect, headers
from runtime.inference.effects import (
    AbortedError,
    BrokenError,
    Emit,
    Enter,
    ExpiredError,
    HttpHead,
    Locate,
    Open,
    Read,
    WireError,
)
from runtime.inference.failures import client_closed
from runtime.inference.queueing import SlotQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from runtime.contracts import LLMDelta
    from runtime.engines.base import Endpoint
    from runtime.inference.connecting import DeadlineSocket
    from runtime.inference.effects import Flow
    from runtime.inference.queueing import Place
    from runtime.inference.switchboard import Switchboard

T = TypeVar("T")

_PACKET_BYTES = 64 * 1024
_LOOK_UP_S = 0.1


class Wire:
    """The connection of one request, made anew when the request is sent again, and its slot.

    Used by one thread at a time; any thread may :meth:`abort` it.

    Args:
        queue: Where it waits for a slot.
    """

    def __init__(self, queue: SlotQueue | None = None) -> None:
        self.aborted = False
        self._woken = threading.Event()
        self._queue = SlotQueue() if queue is None else queue
        self._place: Place | None = None
        self._socket: DeadlineSocket | None = None
        self._response: HTTPResponse | None = None

    def open(self, effect: Open) -> HttpHead:
        """Connect, send, and wait for the head of the answer.

        Raises:
            WireError: That failed.
        """
        self._disconnect()
        request = effect.request
        parts = urlsplit(request.base_url)
        with _Translated(self):
            connected = connect(parts.scheme, parts.hostname or "", parts.port, effect)
            self._socket = connected
            if self.aborted:  # while it was being connected
                raise AbortedError("closed")
            connection = HTTPConnection(parts.netloc)
            connection.sock = connected
            fields = headers(request.api_key, has_body=request.body is not None)
            connection.request(request.method, parts.path + request.path, request.body, fields)
            self._response = response = connection.getresponse()
        if self._place is not None:
            self._place.begun()  # llama.cpp sends the head of a stream when a slot begins
        return HttpHead(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
        )

    def read(self, until: float) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            WireError: They did not come.
        """
        if self._socket is None or self._response is None:
            return b""
        self._socket.until = until
        with _Translated(self):
            data = self._response.read1(_PACKET_BYTES)
            if not data and self._response.length:
                raise BrokenError(f"{self._response.length} bytes are missing")
        return data

    def locate(self, find: Callable[[float], Endpoint], timeout_s: float) -> Endpoint:
        """Where to send the request; waits as long as ``find`` does, and looks up now and then.

        Raises:
            AbortedError: The wire was aborted meanwhile.
            LLMError: What ``find`` raises.
        """
        until = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, until - time.monotonic())
            try:
                found = find(min(left_s, _LOOK_UP_S))
            except RequestTimeoutError:
                if not self.aborted and left_s > _LOOK_UP_S:
                    continue
                if not self.aborted:
                    raise
            if self.aborted:
                raise AbortedError("closed")
            return found

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            AbortedError: The wire was aborted meanwhile.
        """
        self._woken.wait(seconds)
        if self.aborted:
            raise AbortedError("closed")

    def enter(self, effect: Enter) -> Place:
        """Wait in line for a slot.

        Raises:
            QueueFullError: The line is full.
            WireError: None was free in time, or the wire was aborted meanwhile.
        """
        self._leave()
        self._place = place = self._queue.enter(
            self._woken.set, bounded=effect.bounded, long=effect.long
        )
        if not place.granted:
            self._woken.wait(max(0.0, effect.until - time.monotonic()))
            self._woken.clear()
            if self.aborted:  # looked at after the clearing, so that none is lost
                raise AbortedError("closed")
            if not place.granted:
                raise self._queue.still_queued(place)
        return place

    def close(self) -> None:
        """Close the connection, which stops a server that still answers, and give the slot up."""
        self._disconnect()
        self._leave()

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._queue.leave(place)

    def _disconnect(self) -> None:
        response, self._response = self._response, None
        connected, self._socket = self._socket, None
        if response is not None:
            response.close()
        if connected is not None:
            connected.hang_up()

    def abort(self) -> None:
        """End the request from another thread: whoever waits on it is told at once."""
        self.aborted = True
        self._woken.set()
        connected = self._socket
        if connected is not None:
            connected.shut_down()


def iterate(
    flow: Flow[T], *, locate: Callable[[float], Endpoint], board: Switchboard, wire: Wire
) -> Generator[LLMDelta, None, T]:
    """Perform a flow; yields what it emits and returns what it returns.

    Closing the generator closes the connection, which cancels the answer.
    """
    result: object = None
    failure: WireError | LLMError | None = None
    with contextlib.closing(flow), board.connected(wire), contextlib.closing(wire):
        while True:
            try:
                effect = flow.send(result) if failure is None else flow.throw(failure)
            except StopIteration as stop:
                done: T = stop.value
                return done
            except AbortedError as exc:
                raise client_closed() from exc
            result = failure = None
            if isinstance(effect, Emit):
                yield effect.item
                continue
            try:
                if isinstance(effect, Read):
                    result = data = wire.read(effect.until)
                    while effect.shortcut and (taken := effect.shortcut(data)):
                        yield from taken.pieces
                        result = data = wire.read(taken.until)
                elif isinstance(effect, Open):
                    result = wire.open(effect)
                elif isinstance(effect, Locate):
                    result = wire.locate(locate, effect.timeout_s)
                elif isinstance(effect, Enter):
                    result = wire.enter(effect)
                else:
                    wire.pause(effect.seconds)
            except (WireError, LLMError) as exc:  # the latter when the server cannot be located
                failure = exc


def run(
    flow: Flow[T],
    *,
    locate: Callable[[float], Endpoint],
    board: Switchboard,
    queue: SlotQueue | None = None,
) -> T:
    """Perform a flow to its end, whatever it emits."""
    steps = iterate(flow, locate=locate, board=board, wire=Wire(queue))
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            done: T = stop.value
            return done


class _Translated:
    """Turns what sockets and http.client raise into ours; a class, for every packet enters it."""

    __slots__ = ("_wire",)

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if self._wire.aborted and (exc is None or isinstance(exc, Exception)):
            raise AbortedError("closed") from exc  # the end that abort() made looks like any other
        if isinstance(exc, TimeoutError):
            raise ExpiredError("the deadline has passed") from exc
        if isinstance(exc, OSError | HTTPException):
            raise BrokenError(str(exc) or type(exc).__name__) from exc
