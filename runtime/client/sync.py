"""LlamaClient: the contract on a llama.cpp server, one that is started here or one that runs."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Self, TypeVar

from runtime.client._options import embedding_config
from runtime.client._settings import capabilities, client_settings, config_snapshot
from runtime.client._sources import AttachedSource, EndpointSource, ManagedSource
from runtime.client._stream import AnswerStream, events
from runtime.contracts import BackendStatus, LLMChatParams, Provenance
from runtime.inference import counting, embeddings, flow, messages, payload, structured
from runtime.inference.bounds import Bounds
from runtime.inference.clock import Limits
from runtime.inference.names import public_name
from runtime.inference.observation import Asked, Observer, asked_of
from runtime.inference.policy import EnforcementLevel, OnTruncation, Policy
from runtime.inference.reply import Backend
from runtime.inference.transport import Switchboard, Wire, iterate, run

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from typing_extensions import TypeForm

    from runtime.client._options import ServerOptions
    from runtime.contracts import (
        BackendCapabilities,
        EmbeddingResult,
        LLMDelta,
        LLMMessage,
        LLMRequest,
        LLMResponse,
        LLMStreamEvent,
    )
    from runtime.engines.base import Endpoint
    from runtime.inference.effects import Flow
    from runtime.inference.payload import Wish
    from runtime.server.manager import ServerManager
    from runtime.settings import ServerConfig
    from runtime.store import PullProgress

T = TypeVar("T")

_DEFAULTS = Limits()


class LlamaClient:
    """A language model on this machine, behind the provider-neutral contract.

    Without ``base_url`` it resolves and downloads the model, starts a private llama.cpp server and
    waits until it is ready; the server ends with the client, or with the process. With ``base_url``
    it attaches to an OpenAI-compatible server that runs already.

    Every method may be called from any thread, many at once. Inputs are read by attribute, so
    look-alikes of the contract's classes work.

    Example:
        >>> with LlamaClient("smollm2-135m") as client:  # doctest: +SKIP
        ...     print(client.chat("Say hello.").text)
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        config: ServerConfig | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        name: str = "llama-local",
        embedding_model: str | None = None,
        offline: bool | None = None,
        request_timeout_s: float = _DEFAULTS.request_timeout_s,
        first_token_timeout_s: float = _DEFAULTS.first_token_timeout_s,
        stall_timeout_s: float = _DEFAULTS.stall_timeout_s,
        max_retries: int = _DEFAULTS.max_retries,
        on_truncation: OnTruncation = "error",
        enforcement: EnforcementLevel = "best",
        bounds: Bounds | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        **server_options: Unpack[ServerOptions],
    ) -> None:
        """Start a server, or attach to one.

        Args:
            model: A model reference. None: the configuration's, the environment's, or
                ``smollm2-135m``; with ``base_url`` the first model the server lists.
            config: The server's settings; ``server_options`` override single ones.
            base_url: A running server's address, with or without ``/v1``.
            api_key: The key to send, and for a managed server the one to demand.
            name: How responses name this client.
            embedding_model: A model of its own for :meth:`embed`. Its server is started when it is
                first needed; with ``base_url`` it is a model of that server.
            offline: Never use the network to get models; None: as the environment says.
            request_timeout_s: Seconds for a whole request, retries included.
            first_token_timeout_s: Seconds until an answer begins, waiting for a slot included.
            stall_timeout_s: Seconds between two pieces of a streamed answer.
            max_retries: How often a request is sent again by itself.
            on_truncation: What becomes of structured answers that the token budget cut off:
                ``"error"`` raises with the partial text, ``"close"`` returns the shortest valid
                completion and says in ``raw["structured_output"]["closed"]`` what was added.
                A key of that name in ``provider_options`` overrides it for one request.
            enforcement: ``"strict"`` refuses a schema that cannot be enforced to the full while
                decoding; ``"best"`` leaves the rest to validation. Overridden likewise.
            bounds: How much a structured answer may hold where its schema sets no bound; None for
                the defaults. Overridden likewise, also by a dict of single ones.
            progress: Told about the download of models that are not on this machine yet.
            server_options: Fields of :class:`runtime.ServerConfig`.

        Raises:
            ConfigError: A setting is unknown or cannot work.
            ModelNotFoundError: No model answers to the reference.
            EngineStartError: The engine did not come up.
            LLMError: Anything else that went wrong, as its own class.
        """
        limits = Limits(
            request_timeout_s=request_timeout_s,
            first_token_timeout_s=first_token_timeout_s,
            stall_timeout_s=stall_timeout_s,
            max_retries=max_retries,
        )
        settings = client_settings(
            model=model,
            config=config,
            base_url=base_url,
            api_key=api_key,
            name=name,
            embedding_model=embedding_model,
            offline=offline,
            policy=Policy(
                on_truncation=on_truncation, enforcement=enforcement, bounds=bounds or Bounds()
            ),
            limits=limits,
            server_options=server_options,
        )
        self._settings = settings
        self._limits = limits
        self._progress = progress
        self._backend = Backend(name=name, config_hash=settings.hash())
        self._observer = Observer()
        self._board = Switchboard()
        self._lock = threading.Lock()
        self._closed = False
        self._managed: ManagedSource | None = None
        self._embedder: ManagedSource | None = None
        self._source: EndpointSource
        if settings.server is not None:
            self._source = self._managed = ManagedSource(
                settings.server, offline=offline, progress=progress
            )
        else:
            self._source = AttachedSource(
                settings.base_url or "",
                api_key=api_key,
                model=model,
                limits=limits,
                board=self._board,
            )

    # --- the contract -------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> LLMResponse:
        """Answer a conversation.

        Args:
            messages: The conversation, or one user message as a plain string.
            model: The model; None for :meth:`default_model`.
            params: How to answer; None for the defaults.

        Raises:
            LLMError: See the error table of the contract.
        """
        return self._answer(self._chat_wish(messages, model, params))

    def stream_chat(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> AnswerStream[LLMStreamEvent]:
        """Answer piece by piece: deltas, then exactly one completed event with the whole.

        What cannot be right is refused at once; the request is sent with the first step of the
        iteration. Closing or leaving the stream cancels the generation.

        Raises:
            LLMError: As for :meth:`chat`, at once or while iterating.
        """
        return self._stream(self._chat_wish(messages, model, params), events)

    def generate(self, request: LLMRequest) -> LLMResponse:
        """Answer a whole request, tools and schema included.

        Raises:
            LLMError: See the error table of the contract.
        """
        return self._answer(payload.from_request(request, policy=self._settings.policy))

    def stream(self, request: LLMRequest) -> AnswerStream[LLMDelta]:
        """Answer a whole request piece by piece; see :meth:`stream_chat`.

        The last piece holds the token counts, where the server tells them.
        """
        wish = payload.from_request(request, policy=self._settings.policy)
        return self._stream(wish, lambda steps: steps)

    def close(self) -> None:
        """End what runs, and the server that was started here; safe to call twice."""
        with self._lock:
            self._closed = True
            embedder, self._embedder = self._embedder, None
        self._board.close()
        if embedder is not None:
            embedder.stop()
        self._source.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def default_model(self) -> str:
        """The model used when a request names none."""
        return public_name(self._source.current)

    def capabilities(self) -> BackendCapabilities:
        """What this client can do with its model."""
        return capabilities(self._source.current)

    def config_snapshot(self) -> Mapping[str, object]:
        """The configuration: JSON-serializable, no secrets."""
        return config_snapshot(self._settings, self._source)

    def server_snapshot(self) -> Mapping[str, object] | None:
        """The managed server as it is now; None for one that runs elsewhere."""
        return self._source.snapshot()

    def describe(self) -> Mapping[str, object]:
        """The whole composition, JSON-serializable."""
        return {
            "client_class": type(self).__name__,
            "default_model": self.default_model(),
            "backend": self.config_snapshot(),
            "capabilities": asdict(self.capabilities()),
            "server": self.server_snapshot(),
            "counters": self._observer.counters(),
        }

    # --- beyond the contract ------------------------------------------------------------------

    @property
    def server(self) -> ServerManager | None:
        """The managed server; None for one that runs elsewhere."""
        return self._managed.manager if self._managed else None

    def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResult:
        """A vector for each text, in order; each of Euclidean length 1.

        Args:
            texts: Any number, none empty. One longer than the server's batch is refused.
            model: The model; None for the client's ``embedding_model``, else its default model.

        Raises:
            LLMCapabilityError: The server serves no embeddings.
            LLMError: See the error table of the contract.
        """
        checked = embeddings.checked(texts)
        source: EndpointSource = self._source
        own = self._settings.embedding_model
        name = model or own
        if name is not None and name == own and self._settings.server is not None:
            source, sent = self._embedding_source(self._settings.server, name), None
        else:
            sent = source.resolve(name) if name is not None else None
        wanted = embeddings.embed(checked, self._limits, model=sent)
        asked = Asked(
            operation="embeddings",
            model=sent or public_name(source.current),
            backend=self._settings.name,
        )
        return self._run(self._observer.watch(wanted, asked), source.endpoint)

    def healthcheck(self) -> BackendStatus:
        """Whether a request sent now would be served; never raises."""
        if self._closed:
            return BackendStatus(
                ok=False, message="The client is closed.", checked_at=Provenance.now_iso()
            )
        return self._source.health()

    def count_tokens(self, text_or_messages: str | Sequence[LLMMessage]) -> int:
        """Tokens by the engine's own count.

        Args:
            text_or_messages: A text, counted by itself, or messages, counted as the prompt that the
                model's chat template makes of them.

        Raises:
            LLMCapabilityError: The server cannot count.
        """
        if isinstance(text_or_messages, str):
            counted = counting.count_text(text_or_messages, self._limits)
        else:
            made = messages.openai_messages(text_or_messages)
            counted = counting.count_chat(made, self._limits)
        return self._run(counted)

    def parse(
        self,
        messages: Sequence[LLMMessage] | str,
        output_type: TypeForm[T],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        provider_options: dict[str, object] | None = None,
    ) -> T:
        """Answer with an instance of a type.

        Args:
            messages: The conversation, or one user message as a plain string.
            output_type: A pydantic model, a dataclass, or any type pydantic understands.
            model: As for :meth:`chat`.
            temperature: As in :class:`runtime.LLMChatParams`.
            max_tokens: As in :class:`runtime.LLMChatParams`.
            provider_options: As in :class:`runtime.LLMChatParams`.

        Raises:
            LLMInvalidRequestError: The type has no JSON Schema.
            SchemaViolationError: The answer is no instance of it, by rules that a JSON Schema
                cannot express.
            LLMError: As for :meth:`chat`.
        """
        shape = structured.shape_of(output_type)
        params = LLMChatParams(
            temperature=temperature,
            max_tokens=max_tokens,
            response_schema=shape.schema,
            provider_options=dict(provider_options or {}),
        )
        instance: T = shape.instance(self.chat(messages, model=model, params=params).text)
        return instance

    # --- parts --------------------------------------------------------------------------------

    def _chat_wish(
        self, messages: Sequence[LLMMessage] | str, model: str | None, params: LLMChatParams | None
    ) -> Wish:
        policy = self._settings.policy
        return payload.from_chat(messages, model=model, params=params, policy=policy)

    def _answer(self, wish: Wish) -> LLMResponse:
        wish = self._for_its_model(wish)
        return self._run(self._conversation(wish, emit=False))

    def _stream(
        self,
        wish: Wish,
        shape: Callable[[Generator[LLMDelta, None, LLMResponse]], Generator[T, None, object]],
    ) -> AnswerStream[T]:
        wish = self._for_its_model(wish)
        wire = Wire()
        steps = iterate(
            self._conversation(wish, emit=True),
            locate=self._source.endpoint,
            board=self._board,
            wire=wire,
        )
        return AnswerStream(shape(steps), wire)

    def _conversation(self, wish: Wish, *, emit: bool) -> Flow[LLMResponse]:
        asked = asked_of(wish, model=self.default_model(), backend=self._settings.name, stream=emit)
        return self._observer.watch(
            flow.converse(wish, self._limits, self._backend, emit=emit), asked
        )

    def _for_its_model(self, wish: Wish) -> Wish:
        source = self._source
        model = None if wish.model is None else source.resolve(wish.model)
        return replace(wish, model=model, recommended=source.sampling)

    def _run(self, wanted: Flow[T], locate: Callable[[float], Endpoint] | None = None) -> T:
        return run(wanted, locate=locate or self._source.endpoint, board=self._board)

    def _embedding_source(self, config: ServerConfig, model: str) -> ManagedSource:
        with self._lock:
            if self._closed:
                raise flow.client_closed()
            if self._embedder is None:
                own = embedding_config(config, model)
                self._embedder = ManagedSource(
                    own, offline=self._settings.offline, progress=self._progress
                )
            return self._embedder
