"""The endpoints that use a model: each reads a body, has the model, and writes what comes of it.

Plain ASGI apps, see :mod:`runtime.gateway.http`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from runtime.errors import LLMError
from runtime.gateway import openai_embeddings, tokenizing
from runtime.gateway.event_stream import EventStream
from runtime.gateway.http import (
    AT_ONCE_BYTES,
    WRITE_NOW,
    ClientGoneError,
    Reply,
    TooLargeError,
    encoded,
    object_of,
    read_body,
    while_connected,
)
from runtime.gateway.openai_errors import error as openai_error
from runtime.gateway.statuses import headers_of, is_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from runtime.gateway.dialect import Call, CountingDialect, Dialect
    from runtime.gateway.models import Models
    from runtime.gateway.openai_embeddings import Texts
    from runtime.gateway.served import ServedModel
    from runtime.gateway.traffic import Traffic
    from runtime.inference.async_transport import Threads

CLIENT_WENT_AWAY: Final = 499
"""What is counted for a request whose client went away; nobody is told it."""

AT_ONCE_TEXTS: Final = 8
"""Most texts whose vectors are written on the event loop: of 1,024 numbers, 8 take 5 ms."""

AT_ONCE_CHARS: Final = 1000
"""Longest text of those: llama-cpp-python answers with a vector for each of its tokens."""


class Wanting(Protocol):
    """A request that names a model."""

    @property
    def model(self) -> str | None:
        """The model it names, or None."""
        ...

    @property
    def keep_alive_s(self) -> float | None:
        """As of a :class:`Call`."""
        ...


W = TypeVar("W", bound=Wanting)


@dataclass(frozen=True, slots=True)
class Asked(Generic[W]):
    """A request that was read.

    Attributes:
        wanted: What it asks for.
        path: Its path.
        large: Whether work on it holds up the event loop for longer than a token may wait.
    """

    wanted: W
    path: str
    large: bool


class Endpoint(ABC, Generic[W]):
    """An endpoint that uses a model.

    Args:
        models: The models.
        traffic: What is counted.
        reader: Where large bodies are read; one at a time, for they hold up one another.
    """

    def __init__(self, models: Models, traffic: Traffic, reader: Threads) -> None:
        self._models = models
        self._traffic = traffic
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = Reply(send, scope.get("extensions", {}).get(WRITE_NOW))
        traffic = self._traffic
        traffic.in_flight += 1
        began = time.monotonic()
        try:
            await self._answer(scope["path"], receive, reply)
        except ClientGoneError:
            reply.status = CLIENT_WENT_AWAY
        finally:
            traffic.in_flight -= 1
            status = reply.status or CLIENT_WENT_AWAY  # where the gateway ended first
            traffic.over(scope["path"], status, time.monotonic() - began)

    async def _answer(self, path: str, receive: Receive, reply: Reply) -> None:
        model: str | None = None
        try:
            asked = await self._asked(path, await read_body(receive))
            model, keep_s = asked.wanted.model, asked.wanted.keep_alive_s
            async with (
                while_connected(receive) as here,
                self._models.lease(model, keep_s) as served,
            ):
                model = served.name
                await self.perform(asked, served, reply)
            if here.cancelled_caught:
                raise ClientGoneError
        except LLMError as exc:
            problem = self._models.why(exc)
            status, body = self.refusal(problem)
            status = 413 if isinstance(exc, TooLargeError) else status
            self.note(problem, path, status, model)
            await reply.whole(status, body, headers_of(problem))

    async def _asked(self, path: str, data: bytes) -> Asked[W]:
        large = len(data) > AT_ONCE_BYTES
        work = partial(self._understood, data)
        return Asked(await self._reader.run(work) if large else work(), path, large)

    def _understood(self, data: bytes) -> W:
        return self.read(object_of(data))

    @abstractmethod
    def read(self, body: Mapping[str, object]) -> W:
        """What the body of a request asks for; in a thread where it is large."""

    @abstractmethod
    async def perform(self, asked: Asked[W], served: ServedModel, reply: Reply) -> None:
        """Have it done by a model, and answer."""

    def refusal(self, exc: LLMError) -> tuple[int, dict[str, object]]:
        """The status and the body of an error."""
        return openai_error(exc)

    def note(self, exc: LLMError, path: str, status: int, model: str | None) -> None:
        """Remember a fault of the serving side."""
        if is_fault(exc):
            self._traffic.failed(path=path, status=status, model=model, exc=exc)


class Answering(Endpoint["Call"]):
    """Answers in one dialect."""

    def __init__(self, models: Models, traffic: Traffic, reader: Threads, dialect: Dialect) -> None:
        super().__init__(models, traffic, reader)
        self._dialect = dialect

    def read(self, body: Mapping[str, object]) -> Call:
        """The call."""
        return self._dialect.request(body)

    def refusal(self, exc: LLMError) -> tuple[int, dict[str, object]]:
        """An error in the dialect's terms."""
        return self._dialect.error(exc)

    async def perform(self, asked: Asked[Call], served: ServedModel, reply: Reply) -> None:
        """Write the answer, whole or piece by piece."""
        if asked.wanted.stream:
            await self._stream(asked, served, reply)
        else:
            await self._whole(asked, served, reply)

    async def _whole(self, asked: Asked[Call], served: ServedModel, reply: Reply) -> None:
        meter = self._traffic.history.meter()
        async with served.perform(asked.wanted, emit=False, large=asked.large) as performance:
            await performance.deliver()
        meter.end(performance.result)
        await reply.whole(200, self._dialect.answer(performance.result, asked.wanted))

    async def _stream(self, asked: Asked[Call], served: ServedModel, reply: Reply) -> None:
        """Write a stream; until it has begun, an error is one of the request."""
        call = asked.wanted
        encoder, meter = self._dialect.encoder(call), self._traffic.history.meter()
        events = EventStream(reply, encoder, served.name, meter=meter)
        try:
            with events.alive():
                async with served.perform(call, emit=True, large=asked.large) as performance:
                    await performance.deliver(events)
        except LLMError as exc:
            if not events.begun:
                raise
            problem = self._models.why(exc)
            self.note(problem, asked.path, self._dialect.error(problem)[0], served.name)
            await events.failed(problem)
        else:
            meter.end(performance.result)
            await events.end(performance.result)


class Counting(Endpoint["Call"]):
    """Tells how long the prompt of a request is, in one dialect."""

    def __init__(
        self, models: Models, traffic: Traffic, reader: Threads, dialect: CountingDialect
    ) -> None:
        super().__init__(models, traffic, reader)
        self._dialect = dialect

    def read(self, body: Mapping[str, object]) -> Call:
        """What is to be counted."""
        return self._dialect.count(body)

    def refusal(self, exc: LLMError) -> tuple[int, dict[str, object]]:
        """An error in the dialect's terms."""
        return self._dialect.error(exc)

    async def perform(self, asked: Asked[Call], served: ServedModel, reply: Reply) -> None:
        """Tell the count."""
        tokens = await served.count(asked.wanted.request, large=asked.large)
        await reply.whole(200, self._dialect.counted(tokens))


class Embedding(Endpoint["Texts"]):
    """Texts become vectors."""

    def read(self, body: Mapping[str, object]) -> Texts:
        """The texts."""
        return openai_embeddings.request(body)

    async def perform(self, asked: Asked[Texts], served: ServedModel, reply: Reply) -> None:
        """Tell the vectors."""
        wanted = asked.wanted
        # Vectors are long, however short their texts: 2,000 of them take a second to write down.
        several = len(wanted.texts) > AT_ONCE_TEXTS
        large = asked.large or several or any(len(text) > AT_ONCE_CHARS for text in wanted.texts)
        made = await served.vectors(wanted.texts, truncate=wanted.truncate, large=large)

        def answer() -> bytes:
            return encoded(openai_embeddings.answer(made, wanted))

        await reply.whole(200, await self._reader.run(answer) if large else answer())


class Tokenizing(Endpoint[tokenizing.Text]):
    """A text becomes tokens."""

    def read(self, body: Mapping[str, object]) -> tokenizing.Text:
        """The text."""
        return tokenizing.text_of(body)

    async def perform(
        self, asked: Asked[tokenizing.Text], served: ServedModel, reply: Reply
    ) -> None:
        """Tell the tokens."""
        wanted = asked.wanted
        made: list[Any] = await served.tokenize(wanted.text, wanted.options, large=asked.large)
        told = {"tokens": made, "count": len(made), "model": served.name}
        write = partial(encoded, told)
        await reply.whole(200, await self._reader.run(write) if asked.large else write())


class Detokenizing(Endpoint[tokenizing.Tokens]):
    """Tokens become a text."""

    def read(self, body: Mapping[str, object]) -> tokenizing.Tokens:
        """The tokens."""
        return tokenizing.tokens_of(body)

    async def perform(
        self, asked: Asked[tokenizing.Tokens], served: ServedModel, reply: Reply
    ) -> None:
        """Tell the text."""
        text = await served.detokenize(asked.wanted.tokens, large=asked.large)
        await reply.whole(200, {"content": text, "model": served.name})
