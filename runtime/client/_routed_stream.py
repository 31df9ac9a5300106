"""A stream whose model is loaded when its first piece is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from runtime.errors import EngineNotRunningError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from types import TracebackType

    from runtime.client._stream import AnswerStream

Item = TypeVar("Item")


class Course(Generic[Item]):
    """Where a stream is on its way.

    Shared by the stream and its steps, which so hold no cycle: a stream that is dropped ends at
    once.

    Attributes:
        routing: Why which model was chosen, once the first piece was asked for.
        closed: Whether nobody wants the rest.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.routing: Mapping[str, object] | None = None
        self.closed = False
        self._wake = wake
        self._inner: AnswerStream[Item] | None = None

    def follow(self, inner: AnswerStream[Item], routing: Mapping[str, object]) -> None:
        """From now on the pieces are those of ``inner``."""
        self.routing = routing
        self._inner = inner
        if self.closed:
            inner.close()

    def close(self) -> None:
        """Let whoever is under way see that nobody wants the rest."""
        self.closed = True
        self._wake()
        if self._inner is not None:
            self._inner.close()


class RoutedStream(Iterator[Item], Generic[Item]):
    """The pieces of one answer. The model is in use from the first step until the last.

    Closing it cancels the generation, at any time and from any thread; so do leaving its ``with``
    block and dropping it. Iterating over a closed stream ends.
    """

    def __init__(self, steps: Generator[Item, None, object], course: Course[Item]) -> None:
        self._steps = steps
        self._course = course

    @property
    def routing(self) -> Mapping[str, object] | None:
        """Why which model was chosen; None before the first piece was asked for."""
        return self._course.routing

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        try:
            return next(self._steps)
        except EngineNotRunningError:
            if self._course.closed:  # by another thread, while this one waited
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Cancel what is still to come; safe to call twice."""
        self._course.close()
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
