"""A stream whose model is loaded when its first piece is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from runtime.client._stream import AnswerStream

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

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


class RoutedStream(AnswerStream[Item]):
    """The pieces of one answer. The model is in use from the first step until the last.

    Closing it cancels the generation, at any time and from any thread; so do leaving its ``with``
    block and dropping it. Iterating over a closed stream ends.
    """

    def __init__(self, steps: Generator[Item, None, object], course: Course[Item]) -> None:
        super().__init__(steps, course.close)
        self._course = course

    @property
    def routing(self) -> Mapping[str, object] | None:
        """Why which model was chosen; None before the first piece was asked for."""
        return self._course.routing
