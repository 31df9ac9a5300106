"""The async driver: performs the effects of a flow over HTTP, one connection a request.

Streams, cancel scopes and threads are anyio's, so asyncio and trio both work; answers are read by
httptools, in :mod:`runtime.inference.http_answer`. httpx2's client is left out for the reasons
:mod:`runtime.inference.transport` gives: a deadline here is an instant, which a cancel scope around
each effect keeps. On asyncio a streamed answer is taken where it comes in instead, by
:mod:`runtime.inference.loop_stream`: its tokens wake no task.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import anyio
import anyio.to_thread

from runtime.errors import LLMError, RequestTimeoutError
from runtime.inference.effects import (
    AbortedError,
    Emit,
    Enter,
    Locate,
    Open,
    Pause,
    Read,
    WireError,
)
from runtime.inference.failures import client_closed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.contracts import LLMDelta
    from runtime.engines.base import Endpoint
    from runtime.inference.async_wire import AsyncWire
    from runtime.inference.effects import Effect, Flow
    from runtime.inference.switchboard import Switchboard

T = TypeVar("T")

_END = b"[DONE]"
"""In the last packet of a streamed answer, and hardly in another."""

_LOOK_AGAIN_S = 0.02
"""Pause between two looks at a server that restarts. A thread that waits for it could not be called
back, and hundreds of requests would need hundreds."""


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
        begin: Callable[[], Flow[T] | Awaitable[Flow[T]]],
        *,
        source: Locatable,
        board: Switchboard,
        wire: AsyncWire,
        threads: Threads | None = None,
    ) -> None:
        self._begin = begin
        self._source = source
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
                begun = self._begin()
                if isinstance(begun, Awaitable):
                    begun = await self._wire.wait_for(begun)
                self._flow = begun
            except AbortedError:
                raise client_closed() from None
            self._stack.enter_context(contextlib.closing(self._flow))
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
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
        shortcut = read.shortcut

        def step(data: bytes) -> float | None:
            nonlocal due, shortcut
            if shortcut is not None and (taken := shortcut(data)) is not None:
                pieces, until = taken
                self._settled = sink is None or not pieces or sink.take(pieces)
                if self._settled:
                    return until
                due = Read(until, shortcut)
                return None
            if apart and (not data or _END in data):
                due = data  # what comes of it is for a thread
                return None
            due = self._drive(data, None)
            self._settled = self._taken(sink)
            if not (self._settled and isinstance(due, Read)):
                return None
            shortcut = due.shortcut
            return due.until

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
            return await self._located(effect.timeout_s)
        if isinstance(effect, Enter):
            return await self._wire.enter(effect)
        if isinstance(effect, Pause):
            await self._wire.pause(effect.seconds)
        return None

    async def _located(self, timeout_s: float) -> Endpoint:
        """The endpoint, waited for while the server is being restarted.

        Raises:
            LLMProviderError: There is none, or not in time.
            AbortedError: The wire was aborted meanwhile.
        """
        until = time.monotonic() + timeout_s
        while True:
            self._wire.check()
            try:
                return self._source.endpoint(0.0)
            except RequestTimeoutError:  # it is on its way
                if time.monotonic() >= until:
                    raise
            await self._wire.pause(_LOOK_AGAIN_S)


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


class Locatable(Protocol):
    """Knows where a server is."""

    def endpoint(self, timeout_s: float) -> Endpoint:
        """The endpoint to use now; with no time to wait it does not, whatever the server does."""
        ...
