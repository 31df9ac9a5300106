"""The async driver: performs the effects of a flow over HTTP, one connection a request.

Streams, cancel scopes and threads are anyio's, so asyncio and trio both work; HTTP is h11's. Both
come with httpx2, whose own client is left out for the reasons :mod:`runtime.inference.transport`
gives: a deadline here is an instant, which a cancel scope around each effect keeps.
"""

from __future__ import annotations

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
from runtime.inference.transport import headers, no_tls, tls_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

    from anyio.abc import ByteStream

    from runtime.engines.base import Endpoint
    from runtime.inference.effects import Effect, Flow, HttpRequest
    from runtime.inference.queueing import Place, SlotQueue
    from runtime.inference.switchboard import Switchboard

T = TypeVar("T")

_PACKET_BYTES = 64 * 1024

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
        self._stream: ByteStream | None = None
        self._http: h11.Connection | None = None

    async def open(self, effect: Open) -> HttpHead:
        """Connect, send, and wait for the head of the answer.

        Raises:
            WireError: That failed.
        """
        await self._disconnect()
        self._stream = stream = await self._connect(effect)
        self._http = http = h11.Connection(h11.CLIENT)
        with self._within(effect.until), _translated():
            await stream.send(_encoded(http, effect.request))
            response = await self._event(stream, http)
        if not isinstance(response, h11.Response):
            raise BrokenError("the connection was closed without an answer")
        return HttpHead(
            status=response.status_code,
            headers={name.decode("ascii"): _text(value) for name, value in response.headers},
        )

    async def read(self, until: float) -> bytes:
        """The next bytes of the body; empty at its end.

        Raises:
            WireError: They did not come.
        """
        stream, http = self._stream, self._http
        if stream is None or http is None:
            return b""
        with self._within(until), _translated():
            event = await self._event(stream, http)
        return bytes(event.data) if isinstance(event, h11.Data) else b""

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
        stream, self._stream, self._http = self._stream, None, None
        if stream is not None:
            with anyio.CancelScope(shield=True):  # it does not wait for the server
                await stream.aclose()

    def abort(self) -> None:
        """End the request: the task that waits on it is told at once."""
        self.aborted = True
        if self._scope is not None:
            self._scope.cancel()

    async def _connect(self, effect: Open) -> ByteStream:
        parts = urlsplit(effect.request.base_url)
        host = parts.hostname or ""
        until = min(effect.until, time.monotonic() + effect.connect_timeout_s)
        try:
            with self._within(until):
                if parts.scheme != "https":
                    return await anyio.connect_tcp(host, parts.port or 80)
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
    async def _event(stream: ByteStream, http: h11.Connection) -> object:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                try:
                    http.receive_data(await stream.receive(_PACKET_BYTES))
                except anyio.EndOfStream:
                    http.receive_data(b"")
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
            if self._threads is None or self._amid_answer:
                effect = self._resume(result, failure)
            else:
                # Waited for when cancelled, too: a flow cannot be closed in the middle of its work.
                effect = await self._threads.finish(partial(self._resume, result, failure))
            if effect is None or isinstance(effect, Emit):
                return effect
            result = failure = None
            try:
                result = await self._perform(effect)
            except (WireError, LLMError) as exc:  # the latter when the server cannot be located
                failure = exc
            self._amid_answer = isinstance(result, bytes) and bool(result) and _END not in result

    def _resume(self, result: object, failure: Exception | None) -> Effect | None:
        """The flow's next effect, or None when it is over."""
        try:
            return self._flow.send(result) if failure is None else self._flow.throw(failure)
        except StopIteration as stop:
            self.result = stop.value
            return None
        except AbortedError as exc:
            raise client_closed() from exc

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


@contextlib.contextmanager
def _translated() -> Generator[None]:
    """Turns what streams and h11 raise into ours."""
    try:
        yield
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as exc:
        raise BrokenError(str(exc.__cause__ or exc) or type(exc).__name__) from exc
    except h11.ProtocolError as exc:
        raise BrokenError(str(exc)) from exc


def _encoded(http: h11.Connection, request: HttpRequest) -> bytes:
    parts = urlsplit(request.base_url)
    body = request.body or b""
    fields = {"Host": parts.netloc, **headers(request)}
    if request.body is not None:
        fields["Content-Length"] = str(len(body))
    head = h11.Request(
        method=request.method, target=parts.path + request.path, headers=list(fields.items())
    )
    sent = (head, h11.Data(data=body), h11.EndOfMessage()) if body else (head, h11.EndOfMessage())
    return b"".join(http.send(event) for event in sent)


def _text(value: bytes) -> str:
    return value.decode("latin-1")
