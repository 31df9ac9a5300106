"""Streams that callers iterate over, leave, and close."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from runtime.contracts import LLMStreamEvent
from runtime.errors import EngineNotRunningError

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from runtime.contracts import LLMDelta, LLMResponse
    from runtime.inference.transport import Wire

Item = TypeVar("Item")


class AnswerStream(Iterator[Item], Generic[Item]):
    """The pieces of one answer. The request is sent when the first piece is asked for.

    Closing it cancels the generation, at any time and from any thread; so do leaving its ``with``
    block and dropping it. Iterating over a closed stream ends.
    """

    def __init__(self, steps: Generator[Item, None, object], wire: Wire) -> None:
        self._steps = steps
        self._wire = wire
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
        self._wire.abort()
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


def events(
    steps: Generator[LLMDelta, None, LLMResponse],
) -> Generator[LLMStreamEvent, None, None]:
    """A chat's events: a delta for each piece of text, then the completed one."""
    try:
        while True:
            try:
                delta = next(steps)
            except StopIteration as stop:
                yield LLMStreamEvent(kind="completed", response=stop.value)
                return
            if delta.text_delta is not None:
                yield LLMStreamEvent(kind="delta", delta_text=delta.text_delta)
    finally:
        steps.close()
