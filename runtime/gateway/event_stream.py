"""A streamed answer on its way to the client, with signs of life while there is nothing to say."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from runtime.contracts import LLMDelta, LLMResponse
    from runtime.errors import LLMError
    from runtime.gateway.dialect import Encoder
    from runtime.gateway.history import AnswerMeter

SILENCE_S: Final = 15.0
"""Seconds of silence after which a sign of life is due; it is given before twice as many are over.
Without, the clients of coding agents hang up on long prompts: Node's fetch after 300 s without a
byte, some of them earlier."""


class EventReply(Protocol):
    """What :class:`runtime.gateway.http.Reply` does for a stream."""

    async def begin(self) -> None:
        """Send the head."""
        ...

    async def piece(self, data: bytes) -> None:
        """Send a piece."""
        ...

    def piece_now(self, data: bytes) -> bool:
        """Send a piece at once; False where that is not possible."""
        ...

    async def end(self, data: bytes) -> None:
        """Send the last piece."""
        ...


class EventStream:
    """A streamed answer; it begins with its first piece, or its first sign of life.

    Attributes:
        begun: Whether the client has been told of success.
    """

    def __init__(
        self,
        reply: EventReply,
        encoder: Encoder,
        model: str,
        *,
        meter: AnswerMeter | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.begun = False
        self._reply = reply
        self._encoder = encoder
        self._model = model
        self._meter = meter
        self._silence_s = silence_s
        self._moved = False
        self._waiting: list[LLMDelta] = []
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def alive(self) -> Generator[None]:
        """Gives signs of life within the block."""
        self._look()
        try:
            yield
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def take(self, pieces: Sequence[LLMDelta]) -> bool:
        """Send pieces of the answer; False where :meth:`settle` is due before the next."""
        self._moved = True
        if self._meter is not None:
            self._meter.piece(len(pieces))
        if self._beat is not None or not self.begun:
            self._waiting += pieces
            return False
        self._data = self._encoded(pieces)
        if self._reply.piece_now(self._data):
            self._data = b""
        return not self._data

    async def settle(self) -> None:
        """Send what could not be sent at once."""
        opening = await self._opening()
        waiting, self._waiting = self._waiting, []
        data, self._data = opening + self._data + self._encoded(waiting), b""
        if not self._reply.piece_now(data):
            await self._reply.piece(data)

    def _encoded(self, pieces: Sequence[LLMDelta]) -> bytes:
        if len(pieces) == 1:  # as nearly always
            return self._encoder.piece(pieces[0])
        return b"".join([self._encoder.piece(piece) for piece in pieces])

    async def end(self, response: LLMResponse) -> None:
        """Send the end of an answer that is complete."""
        opening = await self._opening()
        await self._reply.end(opening + self._encoder.end(response))

    async def failed(self, exc: LLMError) -> None:
        """Send the end of one that is not."""
        opening = await self._opening()
        await self._reply.end(opening + self._encoder.failed(exc))

    async def _opening(self) -> bytes:
        """What is to come before the next piece; sends the head where none was sent."""
        if self._beat is not None:  # what it began to send must not be overtaken
            await self._beat
        if self.begun:
            return b""
        self.begun = True
        await self._reply.begin()
        return self._encoder.begin(self._model)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None and not self._moved and self._beat is None:
            self._beat = loop.create_task(self._sign())
        self._moved = False
        self._timer = loop.call_later(self._silence_s, self._look)

    async def _sign(self) -> None:
        # A client that is gone is noticed by who reads from it.
        with contextlib.suppress(OSError):
            if self.begun:
                await self._reply.piece(self._encoder.alive)
            else:
                self.begun = True
                await self._reply.begin()
                await self._reply.piece(self._encoder.begin(self._model))
        self._beat = None
