"""Streams that callers iterate over, leave, and close."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from runtime.contracts import LLMStreamEvent
from runtime.errors import EngineNotRunningError
from runtime.inference.stream import ThoughtDelta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from types import TracebackType

    from runtime.contracts import LLMDelta, LLMResponse
    from runtime.inference.async_transport import Performance
    from runtime.inference.async_wire import AsyncWire

Item = TypeVar("Item")


class AnswerStream(Iterator[Item], Generic[Item]):
    """The pieces of one answer. The request is sent when the first piece is asked for.

    Closing it cancels the generation, at any time and from any thread; so do leaving its ``with``
    block and dropping it. Iterating over a closed stream ends.
    """

    def __init__(self, steps: Generator[Item, None, object], cancel: Callable[[], object]) -> None:
        """Nothing is asked for yet.

        Args:
            steps: The pieces.
            cancel: Ends what ``steps`` waits for, at any time and from any thread.
        """
        self._steps = steps
        self._cancel = cancel
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        try:
            return next(self._steps)
        except EngineNotRunningError:
            if self._closed:  # by another thread, while this one waited
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Cancel what is still to come; safe to call twice."""
        self._closed = True
        self._cancel()
        try:
            self._steps.close()
        except ValueError:  # another thread is in it, and is being told
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncAnswerStream(AsyncIterator[Item], Generic[Item]):
    """The pieces of one answer. The request is sent when the first piece is asked for.

    Closing it cancels the generation, at any time and from any task; so do leaving its
    ``async with`` block, cancelling the task that waits for it and dropping it. Iterating over a
    closed stream ends.
    """

    def __init__(self, steps: AsyncGenerator[Item, None], wire: AsyncWire) -> None:
        self._steps = steps
        self._wire = wire
        self._closed = False
        self._reading = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        if self._closed:
            raise StopAsyncIteration
        self._reading = True
        try:
            return await anext(self._steps)
        except EngineNotRunningError:
            if self._closed:  # by another task, while this one waited
                raise StopAsyncIteration from None
            raise
        finally:
            self._reading = False

    async def close(self) -> None:
        """Cancel what is still to come; safe to call twice."""
        self._closed = True
        self._wire.abort()
        if not self._reading:  # else another task is in it, and is being told
            await self._steps.aclose()

    aclose = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


@dataclass(frozen=True, slots=True)
class Form(Generic[Item]):
    """What a stream hands out: of each piece, and of the whole; None for nothing."""

    piece: Callable[[LLMDelta], Item | None]
    whole: Callable[[LLMResponse], Item | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtEvent(LLMStreamEvent):
    """A delta of what the model thinks, not of its answer.

    Attributes:
        thought: The piece.
    """

    thought: str


def _thinking_event(delta: LLMDelta) -> LLMStreamEvent | None:
    if isinstance(delta, ThoughtDelta):
        return ThoughtEvent(kind="delta", thought=delta.thought)
    return _delta_event(delta)


def _delta_event(delta: LLMDelta) -> LLMStreamEvent | None:
    if delta.text_delta is None:
        return None
    return LLMStreamEvent(kind="delta", delta_text=delta.text_delta)


def _completed_event(response: LLMResponse) -> LLMStreamEvent:
    return LLMStreamEvent(kind="completed", response=response)


EVENTS: Final = Form(piece=_delta_event, whole=_completed_event)
"""A chat's: a delta for each piece of text, then the completed one."""

THINKING: Final = Form(piece=_thinking_event, whole=_completed_event)
"""A chat's with the thoughts as they come."""

DELTAS: Final[Form[LLMDelta]] = Form(
    piece=lambda delta: None if isinstance(delta, ThoughtDelta) else delta, whole=lambda _: None
)
"""A request's: every piece of the answer as it is."""


def pieces(
    steps: Generator[LLMDelta, None, LLMResponse], form: Form[Item]
) -> Generator[Item, None, LLMResponse]:
    """What a stream of that form hands out; ends with the response, whatever the form."""
    with contextlib.closing(steps):
        while True:
            try:
                item = form.piece(next(steps))
            except StopIteration as stop:
                response: LLMResponse = stop.value
                last = form.whole(response)
                break
            if item is not None:
                yield item
        if last is not None:
            yield last
        return response


async def async_pieces(
    performance: Performance[LLMResponse], form: Form[Item]
) -> AsyncGenerator[Item, None]:
    """The same of a flow that is performed asynchronously."""
    async with performance:
        while (emitted := await performance.advance()) is not None:
            if (item := form.piece(emitted.item)) is not None:
                yield item
    if (last := form.whole(performance.result)) is not None:
        yield last
