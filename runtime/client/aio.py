"""AsyncLlamaClient: LlamaClient's surface, awaited."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, Self, TypeVar, overload

import anyio

from runtime.client._core import ClientCore
from runtime.client._stream import DELTAS, EVENTS, THINKING, AsyncAnswerStream, async_pieces
from runtime.inference import embeddings, structured, wishes
from runtime.inference.async_transport import Performance, Threads
from runtime.inference.async_wire import AsyncWire
from runtime.inference.failures import client_closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import TypeForm

    from runtime.client._sources import EndpointSource
    from runtime.client._stream import Form
    from runtime.contracts import (
        BackendCapabilities,
        BackendStatus,
        EmbeddingResult,
        LLMChatParams,
        LLMDelta,
        LLMMessage,
        LLMRequest,
        LLMResponse,
        LLMStreamEvent,
        ToolSpec,
    )
    from runtime.inference.effects import Flow
    from runtime.inference.embeddings import TruncatedEmbeddingResult
    from runtime.inference.session_result import Session
    from runtime.inference.wishes import Wish

T = TypeVar("T")


class AsyncLlamaClient(ClientCore):
    """A language model on this machine: :class:`runtime.LlamaClient`, awaited.

    The same arguments and methods; what that one returns is awaited here, and its iterators are
    asynchronous ones. Making it checks the settings and does nothing else: the server is started,
    or looked at, by ``async with``, by :meth:`start`, or by the first call that needs it. Without
    ``async with`` end it with ``await client.close()``.

    Any number of tasks may use it at once, of one event loop at a time, asyncio's or trio's.
    Cancelling a task ends its request at once. What would hold up the event loop is done in worker
    threads.

    Example:
        >>> async with AsyncLlamaClient("smollm2-135m") as client:  # doctest: +SKIP
        ...     print((await client.chat("Say hello.")).text)
    """

    def _begin(self) -> None:
        self._threads = Threads()
        self._starting = anyio.Lock()
        self._begun: set[EndpointSource] = set()

    async def start(self) -> Self:
        """Start the server and wait until it is ready, or look at the one that runs.

        At once when that is done. A start that is cancelled leaves nothing behind.

        Raises:
            ModelNotFoundError: No model answers to the reference.
            EngineStartError: The engine did not come up.
            LLMError: Anything else that went wrong, as its own class.
        """
        await self._started(self._source)
        return self

    # --- the contract -------------------------------------------------------------------------

    async def chat(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> LLMResponse:
        """Answer a conversation; see :meth:`runtime.LlamaClient.chat`."""
        read = partial(self._chat_wish, messages, model, params)
        return await self._answer(read, aside=wishes.takes_long(params))

    def stream_chat(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> AsyncAnswerStream[LLMStreamEvent]:
        """Answer piece by piece; see :meth:`runtime.LlamaClient.stream_chat`.

        Not to be awaited: what it returns is iterated over with ``async for``. A request with a
        schema or tools is checked, off the event loop, when the first piece is asked for.
        """
        read = partial(self._chat_wish, messages, model, params)
        return self._stream(read, EVENTS, aside=wishes.takes_long(params))

    async def generate(self, request: LLMRequest) -> LLMResponse:
        """Answer a whole request; see :meth:`runtime.LlamaClient.generate`."""
        read = partial(self._request_wish, request)
        return await self._answer(read, aside=wishes.takes_long(request))

    def stream(self, request: LLMRequest) -> AsyncAnswerStream[LLMDelta]:
        """Answer a whole request piece by piece; see :meth:`stream_chat`."""
        read = partial(self._request_wish, request)
        return self._stream(read, DELTAS, aside=wishes.takes_long(request))

    async def close(self) -> None:
        """End what runs, and the server that was started here; safe to call twice."""
        sources = self._shut()
        with anyio.CancelScope(shield=True):  # a server is not left running half-ended
            for source in sources:
                await self._threads.run(source.stop)

    aclose = close

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def default_model(self) -> str:
        """The model used when a request names none."""
        await self.start()
        return self._default_model()

    async def capabilities(self) -> BackendCapabilities:
        """What this client can do with its model."""
        await self.start()
        return self._capabilities()

    async def config_snapshot(self) -> Mapping[str, object]:
        """The configuration: JSON-serializable, no secrets."""
        await self.start()
        return self._config_snapshot()

    async def server_snapshot(self) -> Mapping[str, object] | None:
        """The managed server as it is now; None for one that runs elsewhere."""
        return await self._threads.run(self._source.snapshot)

    async def describe(self) -> Mapping[str, object]:
        """The whole composition, JSON-serializable."""
        await self.start()
        return await self._threads.run(self._described)

    # --- beyond the contract ------------------------------------------------------------------

    @overload
    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, truncate: Literal[True]
    ) -> TruncatedEmbeddingResult: ...
    @overload
    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, truncate: bool = False
    ) -> EmbeddingResult: ...
    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, truncate: bool = False
    ) -> EmbeddingResult:
        """A vector for each text, in order; see :meth:`runtime.LlamaClient.embed`."""
        checked = embeddings.checked(texts)
        embedder = self._own_embedder(model)
        if embedder is not None:
            await self._started(embedder)
            wanted = self._embedding(embedder, checked, None, truncate=truncate)
            return await self._run(embedder, wanted)
        await self.start()
        sent = await self._sent_name(model or self._settings.embedding_model)
        wanted = self._embedding(self._source, checked, sent, truncate=truncate)
        return await self._run(self._source, wanted)

    def stream_thinking(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> AsyncAnswerStream[LLMStreamEvent]:
        """Answer piece by piece; see :meth:`runtime.LlamaClient.stream_thinking`."""
        read = partial(self._chat_wish, messages, model, params)
        return self._stream(read, THINKING, aside=wishes.takes_long(params))

    async def healthcheck(self) -> BackendStatus:
        """Whether a request sent now would be served; never raises."""
        return await self._threads.run(self._health)

    async def count_tokens(
        self,
        text_or_messages: str | Sequence[LLMMessage] | LLMRequest,
        *,
        tools: Sequence[ToolSpec] = (),
        params: LLMChatParams | None = None,
    ) -> int:
        """Tokens by the engine's own count; see :meth:`runtime.LlamaClient.count_tokens`."""
        await self.start()
        return await self._run(self._source, self._counting(text_or_messages, tools, params))

    async def save_session(
        self,
        name: str | Path,
        text_or_messages: str | Sequence[LLMMessage] | LLMRequest,
        *,
        tools: Sequence[ToolSpec] = (),
        params: LLMChatParams | None = None,
    ) -> Session:
        """Keep a conversation's state on disk; see :meth:`runtime.LlamaClient.save_session`."""
        await self.start()
        wanted = self._saving(name, text_or_messages, tools, params)
        return await self._run(self._source, wanted, threads=self._threads)

    async def restore_session(self, name: str | Path) -> Session:
        """Bring a saved conversation back; see :meth:`runtime.LlamaClient.restore_session`."""
        await self.start()
        return await self._run(self._source, self._restoring(name), threads=self._threads)

    async def parse(
        self,
        messages: Sequence[LLMMessage] | str,
        output_type: TypeForm[T],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        provider_options: dict[str, object] | None = None,
    ) -> T:
        """Answer with an instance of a type; see :meth:`runtime.LlamaClient.parse`."""
        shape = structured.shape_of(output_type)
        params = shape.params(temperature, max_tokens, provider_options)
        reply = await self.chat(messages, model=model, params=params)
        instance: T = shape.instance(reply.text)
        return instance

    # --- parts --------------------------------------------------------------------------------

    async def _answer(self, read: Callable[[], Wish], *, aside: bool) -> LLMResponse:
        wish = await self._threads.run(read) if aside else read()
        wanted = await self._prepared(wish, emit=False)
        threads = self._threads if aside or self._reads_sessions else None
        return await self._run(self._source, wanted, threads=threads)

    def _stream(
        self, read: Callable[[], Wish], form: Form[T], *, aside: bool
    ) -> AsyncAnswerStream[T]:
        wish = None if aside else read()  # what cannot be right is refused here and now

        async def begin() -> Flow[LLMResponse]:
            known = await self._threads.run(read) if wish is None else wish
            return await self._prepared(known, emit=True)

        wire = AsyncWire(self._source.queue)
        threads = self._threads if aside or self._reads_sessions else None
        performance = self._performance(self._source, begin, wire, threads)
        return AsyncAnswerStream(async_pieces(performance, form), wire)

    async def _prepared(self, wish: Wish, *, emit: bool) -> Flow[LLMResponse]:
        await self.start()
        return self._conversation(wish, await self._sent_name(wish.model), emit=emit)

    async def _sent_name(self, model: str | None) -> str | None:
        if model is None:
            return None
        if model in self._source.models:
            return self._source.resolve(model)
        return await self._threads.run(partial(self._source.resolve, model))  # it looks again

    async def _run(
        self, source: EndpointSource, wanted: Flow[T], *, threads: Threads | None = None
    ) -> T:
        wire = AsyncWire(source.queue)
        async with self._performance(source, lambda: wanted, wire, threads) as performance:
            await performance.deliver()
        return performance.result

    def _performance(
        self,
        source: EndpointSource,
        begin: Callable[[], Flow[T] | Awaitable[Flow[T]]],
        wire: AsyncWire,
        threads: Threads | None,
    ) -> Performance[T]:
        return Performance(begin, source=source, board=self._board, wire=wire, threads=threads)

    async def _started(self, source: EndpointSource) -> None:
        if self._closed:
            raise client_closed()
        if source in self._begun:
            return
        async with self._starting:
            if source in self._begun:
                return
            try:
                await self._threads.run(source.start)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):  # its thread is still at it
                    await self._threads.run(source.stop)
                raise
            self._begun.add(source)
