"""What the sync and the async client have in common: everything but waiting."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, ClassVar

from runtime.client._options import embedding_config
from runtime.client._settings import capabilities, client_settings, config_snapshot
from runtime.client._shared import SharedSource
from runtime.client._sources import AttachedSource, EndpointSource, ManagedSource
from runtime.contracts import BackendStatus, LLMChatParams, Provenance
from runtime.errors import LLMCapabilityError
from runtime.inference import (
    conversation,
    counting,
    embeddings,
    failures,
    wishes,
)
from runtime.inference.bounds import Bounds
from runtime.inference.clock import Limits
from runtime.inference.names import public_name
from runtime.inference.observation import Asked, Observer, asked_of
from runtime.inference.places import Places
from runtime.inference.policy import EnforcementLevel, Fitting, OnTruncation, Policy
from runtime.inference.queueing import DEFAULT_MAX_QUEUE, SlotQueue
from runtime.inference.reply import Backend
from runtime.inference.switchboard import Switchboard
from runtime.settings import gateway_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Unpack

    from runtime.client._options import ServerOptions
    from runtime.contracts import (
        BackendCapabilities,
        EmbeddingResult,
        LLMMessage,
        LLMRequest,
        LLMResponse,
        ToolSpec,
    )
    from runtime.inference.effects import Flow
    from runtime.inference.session_result import Session
    from runtime.inference.sessions import Keeping
    from runtime.inference.wishes import Wish
    from runtime.server.manager import Role, ServerManager
    from runtime.settings import ServerConfig
    from runtime.store import PullProgress

_DEFAULTS = Limits()


class ClientCore:
    """Settings and requests of a client; nothing here waits for a server.

    What a request is comes out of here as a flow; the clients differ in who performs it.
    """

    _role: ClassVar[Role] = "client"

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
        max_queue: int = DEFAULT_MAX_QUEUE,
        on_truncation: OnTruncation = "error",
        enforcement: EnforcementLevel = "best",
        bounds: Bounds | None = None,
        fit: Fitting = "error",
        progress: Callable[[PullProgress], None] | None = None,
        use_gateway: bool | None = None,
        **server_options: Unpack[ServerOptions],
    ) -> None:
        """Check the settings.

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
            max_queue: How many requests may wait, in order of their coming, while as many as the
                server has slots are at work; one more is refused at once with
                :class:`runtime.QueueFullError`. Waiting counts for ``request_timeout_s`` alone. A
                server whose slots are not known gets every request at once.
            on_truncation: What becomes of structured answers that the token budget cut off:
                ``"error"`` raises with the partial text, ``"close"`` returns the shortest valid
                completion and says in ``raw["structured_output"]["closed"]`` what was added,
                ``"keep"`` returns it as it is, told by its ``finish_reason`` alone.
                A key of that name in ``provider_options`` overrides it for one request.
            enforcement: ``"strict"`` refuses a schema that cannot be enforced to the full while
                decoding; ``"best"`` leaves the rest to validation. Overridden likewise.
            bounds: How much a structured answer may hold where its schema sets no bound; None for
                the defaults. Overridden likewise, also by a dict of single ones.
            fit: What becomes of a conversation that leaves the answer no room: ``"error"`` raises,
                ``"drop_oldest"`` leaves out its oldest messages and says in ``raw["fit"]`` which.
                Overridden likewise.
            progress: Told about the download of models that are not on this machine yet.
            use_gateway: Whether a gateway (``llama-runtime serve``) that runs here and serves the
                model is used instead of starting a server; ``describe()["gateway"]`` tells. None:
                when nothing but the model is said of the server and of what becomes of answers,
                here or in the environment, unless ``LLAMA_RUNTIME_USE_GATEWAY=0``. A key that it
                asks for is taken from ``LLAMA_RUNTIME_API_KEY``.
            server_options: Fields of :class:`runtime.ServerConfig`.

        Raises:
            ConfigError: A setting is unknown or cannot work.
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
                on_truncation=on_truncation,
                enforcement=enforcement,
                bounds=bounds or Bounds(),
                fit=fit,
            ),
            limits=limits,
            max_queue=max_queue,
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
        # Others than we may use a server that runs already: there the engine gives out its slots.
        self._places = Places() if settings.server is not None else None
        self._keeping: Keeping | None = None
        self._shared: SharedSource | None = None
        if settings.server is not None:
            self._source = self._managed = self._managed_source(settings.server)
            plain = config is None and api_key is None and embedding_model is None
            plain = plain and not server_options and settings.policy == Policy()
            if use_gateway if use_gateway is not None else plain and gateway_wanted():
                self._source = self._shared = SharedSource(
                    self._managed, model=settings.server.model, limits=limits
                )
        else:
            self._source = AttachedSource(
                settings.base_url or "",
                api_key=api_key,
                model=model,
                limits=limits,
                queue=SlotQueue(settings.max_queue),
            )
        self._begin()

    def _begin(self) -> None:
        """What is to happen once the settings are known to be right."""

    @property
    def server(self) -> ServerManager | None:
        """The managed server; None for one that runs elsewhere."""
        return self._managed.manager if self._managed and self._is_own else None

    @property
    def _is_own(self) -> bool:
        """Whether requests go to a server that is, or would be, started here."""
        return self._shared.is_own if self._shared else self._managed is not None

    # --- what it says of itself ---------------------------------------------------------------

    def _default_model(self) -> str:
        return public_name(self._source.current)

    def _capabilities(self) -> BackendCapabilities:
        return capabilities(self._source.current)

    def _config_snapshot(self) -> Mapping[str, object]:
        told = config_snapshot(self._settings, self._source)
        return told if self._is_own else {**told, "server": None}

    def _described(self) -> Mapping[str, object]:
        gateway = self._shared.gateway if self._shared else None
        return {
            "client_class": type(self).__name__,
            "default_model": self._default_model(),
            "backend": self._config_snapshot(),
            "capabilities": asdict(self._capabilities()),
            "server": self._source.snapshot(),
            "gateway": asdict(gateway) if gateway else None,
            "queue": asdict(self._source.queue.counts),
            "counters": self._observer.counters(),
        }

    def _health(self) -> BackendStatus:
        if self._closed:
            return BackendStatus(
                ok=False, message="The client is closed.", checked_at=Provenance.now_iso()
            )
        return self._source.health()

    # --- requests -----------------------------------------------------------------------------

    def _chat_wish(
        self, messages: Sequence[LLMMessage] | str, model: str | None, params: LLMChatParams | None
    ) -> Wish:
        policy = self._settings.policy
        return wishes.from_chat(messages, model=model, params=params, policy=policy)

    def _request_wish(self, request: LLMRequest) -> Wish:
        return wishes.from_request(request, policy=self._settings.policy)

    def _conversation(self, wish: Wish, model: str | None, *, emit: bool) -> Flow[LLMResponse]:
        """The flow of a wish for a model as its server names it; None for the server's own."""
        wish = replace(wish, model=model, recommended=self._source.sampling)
        own = self._default_model()
        asked = asked_of(wish, model=own, backend=self._settings.name, stream=emit)
        return self._observer.watch(
            conversation.converse(
                wish,
                self._limits,
                self._backend,
                emit=emit,
                places=self._places if self._is_own else None,
                keeping=self._keeping if self._is_own else None,
            ),
            asked,
        )

    def _counting(
        self,
        given: str | Sequence[LLMMessage] | LLMRequest,
        tools: Sequence[ToolSpec],
        params: LLMChatParams | None,
    ) -> Flow[int]:
        if isinstance(given, str) and not tools and params is None:
            return counting.count_text(given, self._limits)
        policy = self._settings.policy
        wish = wishes.from_prompt(given, tools=tools, params=params, policy=policy)
        return counting.count_prompt(wish, self._limits)

    def _saving(
        self,
        name: str | Path,
        given: str | Sequence[LLMMessage] | LLMRequest,
        tools: Sequence[ToolSpec],
        params: LLMChatParams | None,
    ) -> Flow[Session]:
        policy = self._settings.policy
        wish = wishes.from_prompt(given, tools=tools, params=params, policy=policy)
        return self._keeper().save(name, replace(wish, recommended=self._source.sampling))

    def _restoring(self, name: str | Path) -> Flow[Session]:
        return self._keeper().restore(name)

    @property
    def _reads_sessions(self) -> bool:
        """Whether a request may read a session from disk."""
        return self._keeping is not None

    def _keeper(self) -> Keeping:
        from runtime.inference.sessions import Keeping  # noqa: PLC0415 - few keep conversations
        from runtime.store.sessions import SessionStore  # noqa: PLC0415

        if self._places is None or self._managed is None or not self._is_own:
            raise LLMCapabilityError(
                "Sessions are of a server that this client starts, and it uses one that runs "
                "already.",
                hint="Make the client without base_url, and with use_gateway=False.",
            )
        facts = self._managed.manager.session_facts
        with self._lock:
            if self._keeping is None:
                self._keeping = Keeping(self._places, SessionStore(), self._limits, facts)
            return self._keeping

    def _embedding(
        self, source: EndpointSource, texts: list[str], model: str | None, *, truncate: bool
    ) -> Flow[EmbeddingResult]:
        asked = Asked(
            operation="embeddings",
            model=model or public_name(source.current),
            backend=self._settings.name,
        )
        wanted = embeddings.embed(texts, self._limits, model=model, truncate=truncate)
        if source is self._source and self._places is not None:
            wanted = self._places.disturbed(wanted)
        return self._observer.watch(wanted, asked)

    def _own_embedder(self, model: str | None) -> ManagedSource | None:
        """The server of the embedding model when that is asked for; None: it is the chat's."""
        own, server = self._settings.embedding_model, self._settings.server
        if own is None or server is None or model not in {None, own}:
            return None
        with self._lock:
            if self._closed:
                raise failures.client_closed()
            if self._embedder is None:
                self._embedder = self._managed_source(embedding_config(server, own))
            return self._embedder

    def _managed_source(self, config: ServerConfig) -> ManagedSource:
        settings = self._settings
        return ManagedSource(
            config,
            offline=settings.offline,
            max_queue=settings.max_queue,
            progress=self._progress,
            role=self._role,
        )

    def _shut(self) -> list[EndpointSource]:
        """Let nothing run any more; returns what is to be stopped."""
        with self._lock:
            self._closed = True
        self._board.close()
        return [source for source in (self._embedder, self._source) if source is not None]
