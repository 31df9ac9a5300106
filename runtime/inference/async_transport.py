"""The async driver: performs the effects of a flow over HTTP, one connection a request.

Streams, cancel scopes and threads are anyio's, so asyncio and trio both work; the heads of HTTP are
h11's. Both come with httpx2, whose own client is left out for the reasons
:mod:`runtime.inference.transport` gives: a deadline here is an instant, which a cancel scope around
each effect keeps. On asyncio a streamed answer is taken where it comes in instead, by
:mod:`runtime.inference.loop_stream`: its tokens wake no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import h11

from runtime.errors import LLMError, RequestTimeoutError
from runtime.inference.effects import (
    AbortedError,
    BrokenError,
    Emit,
    Enter,
    ExpiredError,
    HttpHead,
    Locate,
    Open,
    Pause,
    Read,
    UnreachableError,
    WireError,
)
from runtime.inference.failures import client_closed
from runtime.inference.http_body import Body
from runtime.inference.loop_stream import LoopStream
from runtime.inference.transport import headers, no_tls, tls_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from anyio.abc import ByteStream

    from runtime.contracts import LLMDelta
    from runtime.engines.base import Endpoint
    from runtime.inference.effects import Effect, Flow, HttpRequest
    from runtime.inference.queueing import Place, SlotQueue
    from runtime.inference.switchboard import Switchboard

T = TypeVar("T")

_PACKET_BYTES = 64 * 1024
_SENT_BYTES = 256 * 1024

_END = b"[DONE]"
"""In the last packet of a streamed answer, and hardly in another."""

_LOOK_AGAIN_S = 0.02
"""Pause between two looks at a server that restarts. A thread that waits for it could not be called
back, and hundreds of requests would need hundreds."""


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
        self._stream = stream = await self._connect(effect)
        http = h11.Connection(h11.CLIENT)
        with self._within(effect.until), _translated():
            for piece in _encoded(http, effect.request):
                await stream.send(piece)
            response = await self._event(stream, http)
        if not isinstance(response, h11.Response):
            raise BrokenError("the connection was closed without an answer")
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
            with self._within(until), _translated():
                received = await _received(stream)
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

        if self.aborted:
            raise AbortedError("closed")
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
        self._place = place = self._queue.enter(granted.set, bounded=effect.bounded)
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
        if stream is not None:
            with anyio.CancelScope(shield=True):  # it does not wait for the server
                await stream.aclose()

    def abort(self) -> None:
        """End the request: the task that waits on it is told at once."""
        self.aborted = True
        if self._scope is not None:
            self._scope.cancel()
        if isinstance(self._stream, LoopStream):
            self._stream.fail(AbortedError("closed"))

    async def _connect(self, effect: Open) -> ByteStream | LoopStream:
        parts = urlsplit(effect.request.base_url)
        host = parts.hostname or ""
        until = min(effect.until, time.monotonic() + effect.connect_timeout_s)
        try:
            with self._within(until):
                if parts.scheme != "https":
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

    @staticmethod
    async def _event(stream: ByteStream | LoopStream, http: h11.Connection) -> object:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await _received(stream))
            elif not isinstance(event, h11.InformationalResponse):
                return event

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
        if self.aborted:
            raise AbortedError("closed")
        if scope.cancelled_caught:
            raise ExpiredError("the deadline has passed")


class Sink(Protocol):
    """Where the pieces of an answer go."""

    def take(self, pieces: Sequence[LLMDelta], /) -> bool:
        """Take them; False where :meth:`settle` must be awaited before the next."""
        ...

    async def settle(self) -> None:
        """Wait until more can be taken."""
        ...


class Performance(Generic[T]):
    """A flow under way; as a context manager, for leaving it closes its connection.

    No generator: asyncio closes all that are left when a loop ends at once, and one that waits for
    another is then closed in the middle of it.

    Attributes:
        result: What the flow returned, once it has.
    """

    result: T

    def __init__(
        self,
        begin: Callable[[], Awaitable[Flow[T]]],
        *,
        locate: Callable[[float], Awaitable[Endpoint]],
        board: Switchboard,
        wire: AsyncWire,
        threads: Threads | None = None,
    ) -> None:
        self._begin = begin
        self._locate = locate
        self._board = board
        self._wire = wire
        self._threads = threads
        self._amid_answer = False
        self._emitted: list[LLMDelta] = []
        self._settled = True
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self._board.connected(self._wire))
            try:
                self._flow = await self._wire.wait_for(self._begin())
            except AbortedError:
                raise client_closed() from None
            self._stack.enter_context(contextlib.closing(self._flow))
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._stack:
            await self._wire.close()

    async def advance(self) -> Emit | None:
        """Perform effects until a piece is to be handed out; None when there are no more."""
        result: object = None
        failure: WireError | LLMError | None = None
        while True:
            effect = await self._next(self._resume, result, failure)
            if effect is None or isinstance(effect, Emit):
                return effect
            result, failure = await self._tried(effect)

    async def deliver(self, sink: Sink | None = None) -> None:
        """Perform it to its end; what it emits goes to ``sink``, or nowhere.

        What one packet brings is handed on together. In the midst of an answer that is done where
        the event loop has the packet, for as long as the sink takes it at once.
        """
        failure: Exception | None
        try:
            effect = await self._next(self._drive, None, None)
            while effect is not None:
                await self._hand_on(sink)
                if isinstance(effect, Read) and self._wire.waits and self._is_quick:
                    due, failure = await self._streamed(effect, sink)
                    if not isinstance(due, bytes):
                        effect = due
                        continue
                    result: object = due
                    self._look_at(result)
                else:
                    result, failure = await self._tried(effect)
                effect = await self._next(self._drive, result, failure)
        finally:
            await self._hand_on(sink)  # also what came before a failure

    async def _streamed(
        self, read: Read, sink: Sink | None
    ) -> tuple[Effect | bytes | None, WireError | None]:
        """Let the flow take what it reads where the event loop has it.

        Returns:
            The effect that is to be performed next, or the bytes to go on with; and what failed.
        """
        due: Effect | bytes | None = b""
        apart = self._threads is not None

        def step(data: bytes) -> float | None:
            nonlocal due
            if apart and (not data or _END in data):
                due = data  # what comes of it is for a thread
                return None
            due = self._drive(data, None)
            self._settled = self._taken(sink)
            return due.until if self._settled and isinstance(due, Read) else None

        try:
            await self._wire.each(step, read.until)
        except WireError as exc:
            return b"", exc
        return due, None

    def _taken(self, sink: Sink | None) -> bool:
        """Hand on what was emitted; whether that is all there is to do."""
        emitted, self._emitted = self._emitted, []
        return sink is None or not emitted or sink.take(emitted)

    async def _hand_on(self, sink: Sink | None) -> None:
        settled = self._taken(sink) and self._settled
        self._settled = True
        if sink is not None and not settled:
            await sink.settle()

    @property
    def _is_quick(self) -> bool:
        """Whether the flow's next step holds up the event loop for no longer than a token may."""
        return self._threads is None or self._amid_answer

    async def _next(
        self,
        go_on: Callable[[object, Exception | None], Effect | None],
        result: object,
        failure: Exception | None,
    ) -> Effect | None:
        if self._threads is None or self._amid_answer:
            return go_on(result, failure)
        # Waited for when cancelled, too: a flow cannot be closed in the middle of its work.
        return await self._threads.finish(partial(go_on, result, failure))

    def _drive(self, result: object, failure: Exception | None) -> Effect | None:
        """The flow's next effect that is no piece; the pieces before it are kept."""
        effect = self._resume(result, failure)
        while isinstance(effect, Emit):
            self._emitted.append(effect.item)
            effect = self._resume(None, None)
        return effect

    def _resume(self, result: object, failure: Exception | None) -> Effect | None:
        """The flow's next effect, or None when it is over."""
        try:
            return self._flow.send(result) if failure is None else self._flow.throw(failure)
        except StopIteration as stop:
            self.result = stop.value
            return None
        except AbortedError as exc:
            raise client_closed() from exc

    async def _tried(self, effect: Effect) -> tuple[object, WireError | LLMError | None]:
        """What comes of an effect, or why nothing does."""
        result: object = None
        failure: WireError | LLMError | None = None
        try:
            result = await self._perform(effect)
        except (WireError, LLMError) as exc:  # the latter when the server cannot be located
            failure = exc
        self._look_at(result)
        return result, failure

    def _look_at(self, result: object) -> None:
        self._amid_answer = isinstance(result, bytes) and bool(result) and _END not in result

    async def _perform(self, effect: Effect) -> object:
        if isinstance(effect, Read):
            return await self._wire.read(effect.until)
        if isinstance(effect, Open):
            return await self._wire.open(effect)
        if isinstance(effect, Locate):
            return await self._wire.wait_for(self._locate(effect.timeout_s))
        if isinstance(effect, Enter):
            return await self._wire.enter(effect)
        if isinstance(effect, Pause):
            await self._wire.pause(effect.seconds)
        return None


class Threads:
    """Worker threads of a client, for what would hold up the event loop.

    They are few and its own: work that waits keeps neither another client's nor the program's
    threads from theirs.
    """

    def __init__(self, most: int = 4) -> None:
        self._limiter = anyio.CapacityLimiter(most)

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns. A task that is cancelled does not wait for its end."""
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)

    async def finish(self, work: Callable[[], T]) -> T:
        """What ``work`` returns; a task that is cancelled ends with it."""
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)


async def locate(source: Locatable, timeout_s: float) -> Endpoint:
    """The endpoint, waited for while the server is being restarted.

    Raises:
        LLMProviderError: There is none, or not in time.
    """
    until = time.monotonic() + timeout_s
    while True:
        try:
            return source.endpoint(0.0)
        except RequestTimeoutError:  # it is on its way
            if time.monotonic() >= until:
                raise
        await anyio.sleep(_LOOK_AGAIN_S)


class Locatable(Protocol):
    """Knows where a server is."""

    def endpoint(self, timeout_s: float) -> Endpoint:
        """The endpoint to use now; with no time to wait it does not, whatever the server does."""
        ...


async def _received(stream: ByteStream | LoopStream) -> bytes:
    """The next bytes of a connection; none at its end."""
    if isinstance(stream, LoopStream):
        return await stream.receive()
    try:
        return await stream.receive(_PACKET_BYTES)
    except anyio.EndOfStream:
        return b""


def _on_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None  # trio as asyncio's guest has none
    except RuntimeError:  # no event loop of asyncio's
        return False


@contextlib.contextmanager
def _translated() -> Generator[None]:
    """Turns what streams and h11 raise into ours."""
    try:
        yield
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as exc:
        raise BrokenError(str(exc.__cause__ or exc) or type(exc).__name__) from exc
    except h11.ProtocolError as exc:
        raise BrokenError(str(exc)) from exc


def _encoded(http: h11.Connection, request: HttpRequest) -> Iterator[bytes]:
    """The request in pieces: copying tens of megabytes at once would hold up the event loop."""
    parts = urlsplit(request.base_url)
    body = request.body or b""
    fields = {"Host": parts.netloc, **headers(request)}
    if request.body is not None:
        fields["Content-Length"] = str(len(body))
    head = h11.Request(
        method=request.method, target=parts.path + request.path, headers=list(fields.items())
    )
    piece = http.send(head) or b""
    for start in range(0, len(body), _SENT_BYTES):
        yield piece + (http.send(h11.Data(data=body[start : start + _SENT_BYTES])) or b"")
        piece = b""
    piece += http.send(h11.EndOfMessage()) or b""
    if piece:
        yield piece


def _text(value: bytes) -> str:
    return value.decode("latin-1")
