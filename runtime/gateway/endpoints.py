"""The endpoints that use a model: each reads a body, has the model, and writes what comes of it.

Plain ASGI apps, see :mod:`runtime.gateway.http`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from runtime.errors import LLMError
from runtime.gateway import openai_embeddings, tokenizing
from runtime.gateway.event_stream import EventStream
from runtime.gateway.http import (
    WRITE_NOW,
    ClientGoneError,
    Reply,
    TooLargeError,
    read_object,
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

CLIENT_WENT_AWAY: Final = 499
"""What is counted for a request whose client went away; nobody is told it."""


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


class Endpoint(ABC, Generic[W]):
    """An endpoint that uses a model."""

    def __init__(self, models: Models, traffic: Traffic) -> None:
        self._models = models
        self._traffic = traffic

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
            wanted = self.read(await read_object(receive))
            model, keep_s = wanted.model, wanted.keep_alive_s
            async with (
                while_connected(receive) as here,
                self._models.lease(model, keep_s) as served,
            ):
                model = served.name
                await self.perform(wanted, served, reply, path)
            if here.cancelled_caught:
                raise ClientGoneError
        except LLMError as exc:
            problem = self._models.why(exc)
            status, body = self.refusal(problem)
            status = 413 if isinstance(exc, TooLargeError) else status
            self.note(problem, path, status, model)
            await reply.whole(status, body, headers_of(problem))

    @abstractmethod
    def read(self, body: Mapping[str, object]) -> W:
        """What the body of a request asks for."""

    @abstractmethod
    async def perform(self, wanted: W, served: ServedModel, reply: Reply, path: str) -> None:
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

    def __init__(self, models: Models, traffic: Traffic, dialect: Dialect) -> None:
        super().__init__(models, traffic)
        self._dialect = dialect

    def read(self, body: Mapping[str, object]) -> Call:
        """The call."""
        return self._dialect.request(body)

    def refusal(self, exc: LLMError) -> tuple[int, dict[str, object]]:
        """An error in the dialect's terms."""
        return self._dialect.error(exc)

    async def perform(self, wanted: Call, served: ServedModel, reply: Reply, path: str) -> None:
        """Write the answer, whole or piece by piece."""
        if wanted.stream:
            await self._stream(wanted, served, reply, path)
        else:
            await self._whole(wanted, served, reply)

    async def _whole(self, call: Call, served: ServedModel, reply: Reply) -> None:
        meter = self._traffic.history.meter()
        async with served.perform(call, emit=False) as performance:
            await performance.deliver()
        meter.end(performance.result)
        await reply.whole(200, self._dialect.answer(performance.result, call))

    async def _stream(self, call: Call, served: ServedModel, reply: Reply, path: str) -> None:
        """Write a stream; until it has begun, an error is one of the request."""
        encoder, meter = self._dialect.encoder(call), self._traffic.history.meter()
        events = EventStream(reply, encoder, served.name, meter=meter)
        try:
            with events.alive():
                async with served.perform(call, emit=True) as performance:
                    await performance.deliver(events)
        except LLMError as exc:
            if not events.begun:
                raise
            problem = self._models.why(exc)
            self.note(problem, path, self._dialect.error(problem)[0], served.name)
            await events.failed(problem)
        else:
            meter.end(performance.result)
            await events.end(performance.result)


class Counting(Endpoint["Call"]):
    """Tells how long the prompt of a request is, in one dialect."""

    def __init__(self, models: Models, traffic: Traffic, dialect: CountingDialect) -> None:
        super().__init__(models, traffic)
        self._dialect = dialect

    def read(self, body: Mapping[str, object]) -> Call:
        """What is to be counted."""
        return self._dialect.count(body)

    def refusal(self, exc: LLMError) -> tuple[int, dict[str, object]]:
        """An error in the dialect's terms."""
        return self._dialect.error(exc)

    async def perform(self, wanted: Call, served: ServedModel, reply: Reply, path: str) -> None:  # noqa: ARG002 - of the base
        """Tell the count."""
        tokens = await served.count_tokens(wanted.request)
        await reply.whole(200, self._dialect.counted(tokens))


class Embedding(Endpoint["Texts"]):
    """Texts become vectors."""

    def read(self, body: Mapping[str, object]) -> Texts:
        """The texts."""
        return openai_embeddings.request(body)

    async def perform(self, wanted: Texts, served: ServedModel, reply: Reply, path: str) -> None:  # noqa: ARG002 - of the base
        """Tell the vectors."""
        made = await served.embed(wanted.texts, truncate=wanted.truncate)
        await reply.whole(200, openai_embeddings.answer(made, wanted))


class Tokenizing(Endpoint[tokenizing.Text]):
    """A text becomes tokens."""

    def read(self, body: Mapping[str, object]) -> tokenizing.Text:
        """The text."""
        return tokenizing.text_of(body)

    async def perform(  # noqa: D102 - the base says it
        self,
        wanted: tokenizing.Text,
        served: ServedModel,
        reply: Reply,
        path: str,  # noqa: ARG002
    ) -> None:
        made: list[Any] = await served.tokenize(wanted.text, wanted.options)
        await reply.whole(200, {"tokens": made, "count": len(made), "model": served.name})


class Detokenizing(Endpoint[tokenizing.Tokens]):
    """Tokens become a text."""

    def read(self, body: Mapping[str, object]) -> tokenizing.Tokens:
        """The tokens."""
        return tokenizing.tokens_of(body)

    async def perform(  # noqa: D102 - the base says it
        self,
        wanted: tokenizing.Tokens,
        served: ServedModel,
        reply: Reply,
        path: str,  # noqa: ARG002
    ) -> None:
        text = await served.detokenize(wanted.tokens)
        await reply.whole(200, {"content": text, "model": served.name})
