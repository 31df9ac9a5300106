"""One of the gateway's models: an engine of its own and the client that talks to it."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from runtime.client._loading import engine_bytes
from runtime.client.aio import AsyncLlamaClient
from runtime.inference import embeddings, tokens, wishes
from runtime.inference.async_wire import AsyncWire
from runtime.inference.failures import client_closed
from runtime.inference.observation import summed
from runtime.server.lifecycle import RESTING_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.client._routed import KnownModel
    from runtime.contracts import EmbeddingResult, LLMRequest, LLMResponse
    from runtime.gateway.dialect import Call
    from runtime.inference.async_transport import Performance
    from runtime.inference.effects import Flow
    from runtime.inference.queueing import QueueCounts
    from runtime.server.manager import Role
    from runtime.store import PullProgress


class ServedModel(AsyncLlamaClient):
    """A loaded model. Its requests are performed on the gateway's event loop."""

    _role: ClassVar[Role] = "engine"

    def load(self) -> None:
        """Start the engine and wait until it is ready; for a thread of the pool's."""
        self._source.start()
        self._begun.add(self._source)

    def cut(self) -> None:
        """End its requests, and each one to come; for the event loop's thread."""
        self._board.close()

    def end(self) -> None:
        """End the engine; nobody may be using it."""
        for source in self._shut():
            source.stop()

    @property
    def name(self) -> str:
        """The name that its answers carry."""
        return self._default_model()

    @property
    def context_tokens(self) -> int | None:
        """Tokens one request may hold."""
        return self._source.current.context_tokens

    @property
    def vision(self) -> bool | None:
        """Whether it understands images; None where that is not known."""
        return self._source.current.capabilities.vision

    @property
    def queue(self) -> QueueCounts:
        """How many requests it works on, and how many wait."""
        return self._source.queue.counts

    def counters(self) -> dict[str, object]:
        """What its requests so far came to."""
        return self._observer.counters()

    async def tokenize(
        self, text: str, options: Mapping[str, object], *, large: bool = False
    ) -> list[object]:
        """The tokens of a text; see :func:`runtime.inference.tokens.tokenize`.

        Here and below, what is ``large`` is worked on in a thread.
        """
        wanted = tokens.tokenize(text, options, self._limits)
        return await self._run(self._source, wanted, threads=self._threads if large else None)

    async def detokenize(self, given: Sequence[int], *, large: bool = False) -> str:
        """The text that tokens stand for."""
        wanted = tokens.detokenize(given, self._limits)
        return await self._run(self._source, wanted, threads=self._threads if large else None)

    async def count(self, request: LLMRequest, *, large: bool = False) -> int:
        """How many tokens the prompt of a request has."""
        aside = large or wishes.takes_long(request)
        begin = partial(self._counting, request, (), None)
        wanted = await self._threads.run(begin) if aside else begin()
        return await self._run(self._source, wanted, threads=self._threads if aside else None)

    async def vectors(
        self, texts: Sequence[str], *, truncate: bool = False, large: bool = False
    ) -> EmbeddingResult:
        """A vector for each text; see :meth:`embed`."""

        def begin() -> Flow[EmbeddingResult]:
            checked = embeddings.checked(texts)
            return self._embedding(self._source, checked, None, truncate=truncate)

        wanted = await self._threads.run(begin) if large else begin()
        return await self._run(self._source, wanted, threads=self._threads if large else None)

    def perform(self, call: Call, *, emit: bool, large: bool = False) -> Performance[LLMResponse]:
        """An answer under way; see :class:`Performance`.

        What cannot be right in the request is refused at its beginning.
        """
        reading = wishes.from_text if call.raw else wishes.from_request
        read = partial(reading, call.request, policy=self._settings.policy)
        aside = large or wishes.takes_long(call.request)

        def begin() -> Flow[LLMResponse]:
            return self._conversation(read(), None, emit=emit)

        async def begin_aside() -> Flow[LLMResponse]:
            return self._conversation(await self._threads.run(read), None, emit=emit)

        wire = AsyncWire(self._source.queue)
        if aside:
            return self._performance(self._source, begin_aside, wire, self._threads)
        return self._performance(self._source, begin, wire, None)


class ServedLoader:
    """Loads the gateway's models for its pool. Any thread may use it.

    Args:
        models: The models by name; may grow.
        options: Arguments of every client.
        progress: Told about downloads.
    """

    def __init__(
        self,
        models: Mapping[str, KnownModel],
        *,
        options: Mapping[str, Any],
        progress: Callable[[PullProgress], None] | None,
    ) -> None:
        self._models = models
        self._options = options
        self._progress = progress
        self._lock = threading.Lock()
        self._closing = False
        self._starting: set[ServedModel] = set()
        self._past: dict[str, dict[str, object]] = {}

    def close(self) -> None:
        """Give up what is being fetched or started; what has arrived is kept for the next time."""
        with self._lock:
            self._closing = True
            starting = list(self._starting)
        for served in starting:
            served.end()

    def prepare(self, name: str) -> int:
        """Fetch the model; returns the memory it will take."""
        return self._models[name].prepare(self._told)

    def load(self, name: str) -> ServedModel:
        """A client whose engine is ready."""
        known = self._models[name]
        served = ServedModel(config=known.config, progress=self._told, **self._options)
        with self._lock:
            if self._closing:
                raise client_closed()
            self._starting.add(served)
        try:
            served.load()
        finally:
            with self._lock:
                self._starting.discard(served)
        return served

    def unload(self, name: str, loaded: ServedModel) -> None:
        """End a client and its engine."""
        loaded.end()
        with self._lock:
            self._past[name] = self.counters(name, loaded)

    def counters(self, name: str, loaded: ServedModel | None) -> dict[str, object]:
        """What the requests to a model came to, those from before it was loaded anew included."""
        past = self._past.get(name)
        told = [loaded.counters()] if loaded is not None else []
        return summed([past, *told] if past else told)

    def usable(self, name: str, loaded: ServedModel) -> bool:  # noqa: ARG002 - of the protocol
        """Whether its engine runs, or is being restarted."""
        return loaded.server is None or loaded.server.state not in RESTING_STATES

    def measured_bytes(self, name: str, loaded: ServedModel) -> int | None:
        """The resident size of its engine, without file pages that the system may drop."""
        return engine_bytes(loaded.server, self._models[name])

    def _told(self, progress: PullProgress) -> None:
        if self._closing:
            raise client_closed()
        if self._progress is not None:
            self._progress(progress)
