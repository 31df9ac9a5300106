"""RoutingClient: the contract over several models, of which each request gets the one that fits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self, TypeVar

from runtime.client._loading import ClientLoader
from runtime.client._pool import ModelPool
from runtime.client._routed import known_models
from runtime.client._router import AUTO, Router, without_model
from runtime.client._speeds import SpeedBook
from runtime.contracts import (
    BackendCapabilities,
    BackendStatus,
    LLMChatParams,
    Provenance,
    TaskProfile,
)
from runtime.errors import ConfigError
from runtime.hardware import memory
from runtime.inference import structured, wishes
from runtime.inference.bounds import Bounds
from runtime.inference.clock import Limits
from runtime.inference.policy import Policy
from runtime.inference.queueing import DEFAULT_MAX_QUEUE, checked_max_queue
from runtime.store import ModelStore
from runtime.store.fit import margin_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from typing_extensions import TypeForm

    from runtime.client._loading import RoutedClient
    from runtime.client._options import ServerOptions
    from runtime.client._routed import RoutedModel
    from runtime.client._routed_stream import RoutedStream
    from runtime.contracts import (
        EmbeddingResult,
        LLMDelta,
        LLMMessage,
        LLMRequest,
        LLMResponse,
        LLMStreamEvent,
        ToolSpec,
    )
    from runtime.inference.policy import EnforcementLevel, Fitting, OnTruncation
    from runtime.settings import ServerConfig
    from runtime.store import PullProgress

T = TypeVar("T")

_DEFAULTS = Limits()


class RoutingClient:
    """Several models behind one client; each request goes to the one that fits it best.

    A model is loaded when it is first needed, with a private server of its own, and unloaded when
    another needs its room or nobody has used it for a while; never while it is in use. All of them
    end with the client, or with the process. Every method may be called from any thread.

    What a request wants is its ``task_profile``; a ``model`` that it names wins over everything.
    Why which model was chosen is in the response's ``raw["routing"]``.

    Example:
        >>> models = [RoutedModel("smollm2-135m", tags=("fast",)), "qwen3-4b"]  # doctest: +SKIP
        >>> with RoutingClient(models) as client:  # doctest: +SKIP
        ...     client.generate(LLMRequest(messages=..., task_profile=TaskProfile(tags=("fast",))))
    """

    def __init__(
        self,
        models: Sequence[RoutedModel | ServerConfig | str],
        *,
        memory_budget_bytes: int | None = None,
        idle_timeout_s: float | None = 900.0,
        task_profile: TaskProfile | None = None,
        name: str = "llama-router",
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
        **server_options: Unpack[ServerOptions],
    ) -> None:
        """Look at the models; nothing is fetched or loaded yet.

        Args:
            models: The models, each a reference, a configuration, or either with tags.
            memory_budget_bytes: Most main memory that all loaded models together take; None for
                what this machine has now, with a tenth of its memory (at least 512 MiB) left free.
            idle_timeout_s: A model that nobody used for so long is unloaded; None for never.
            task_profile: What requests want that do not say it.
            name: How responses name this client.
            offline: As for :class:`runtime.LlamaClient`, as are all that follow.
            request_timeout_s: Also the longest wait for a model to be loaded; an answer has what
                that left of it.
            first_token_timeout_s: From when the model is loaded.
            stall_timeout_s: As there.
            max_retries: As there.
            max_queue: As there, for each model; while one is being loaded, as many more may wait as
                it will have slots.
            on_truncation: As there.
            enforcement: As there.
            bounds: As there.
            fit: As there.
            progress: As there.
            server_options: Settings of every model's server that its own configuration leaves open.

        Raises:
            ConfigError: A setting cannot work, or two models have one name.
            ModelNotFoundError: A reference cannot name a model.
            EngineNotInstalledError: There is no engine.
        """
        if idle_timeout_s is not None and not idle_timeout_s > 0:
            raise ConfigError(f"idle_timeout_s is {idle_timeout_s!r}.", hint="It is above 0.")
        if memory_budget_bytes is None:
            has = memory()
            memory_budget_bytes = max(0, has.effective_available_bytes - margin_bytes(has))
        limits: dict[str, Any] = {
            "request_timeout_s": request_timeout_s,
            "first_token_timeout_s": first_token_timeout_s,
            "stall_timeout_s": stall_timeout_s,
            "max_retries": max_retries,
        }
        self._limits = Limits(**limits)
        self._policy = Policy(
            on_truncation=on_truncation,
            enforcement=enforcement,
            bounds=bounds or Bounds(),
            fit=fit,
        )
        self._max_queue = checked_max_queue(max_queue)
        self._name = name
        self._profile = task_profile or TaskProfile()
        self._budget = memory_budget_bytes
        self._idle_timeout_s = idle_timeout_s
        self._models = known_models(
            models, shared=server_options, store=ModelStore(offline=offline)
        )
        self._book = SpeedBook()
        self._loader = ClientLoader(
            self._models,
            book=self._book,
            options={
                **limits,
                "name": name,
                "offline": offline,
                "on_truncation": on_truncation,
                "enforcement": enforcement,
                "bounds": bounds,
                "fit": fit,
                "max_queue": max_queue,
            },
            progress=progress,
        )
        self._pool: ModelPool[RoutedClient] = ModelPool(
            self._loader, budget_bytes=memory_budget_bytes, idle_timeout_s=idle_timeout_s
        )
        self._router = Router(
            self._models,
            pool=self._pool,
            book=self._book,
            profile=self._profile,
            budget_bytes=memory_budget_bytes,
            timeout_s=request_timeout_s,
            max_queue=max_queue,
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
            model: One of the models; None or ``"auto"`` leaves the choice to the router.
            params: How to answer; None for the defaults.

        Raises:
            NoModelFitsError: Says for each model why not.
            LLMError: See the error table of the contract.
        """
        wish = wishes.from_chat(messages, model=model, params=params, policy=self._policy)
        return self._router.answer(wish, None, lambda client: client.chat(messages, params=params))

    def stream_chat(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> RoutedStream[LLMStreamEvent]:
        """Answer piece by piece: deltas, then exactly one completed event with the whole.

        The model is chosen at once and loaded with the first step of the iteration.

        Raises:
            LLMError: As for :meth:`chat`, at once or while iterating.
        """
        wish = wishes.from_chat(messages, model=model, params=params, policy=self._policy)
        return self._router.stream(
            wish, None, lambda client: client.stream_chat(messages, params=params)
        )

    def generate(self, request: LLMRequest) -> LLMResponse:
        """Answer a whole request, tools and schema included, with the model that fits it.

        Raises:
            LLMError: As for :meth:`chat`.
        """
        wish = wishes.from_request(request, policy=self._policy)
        plain = without_model(request)
        return self._router.answer(wish, request, lambda client: client.generate(plain))

    def stream(self, request: LLMRequest) -> RoutedStream[LLMDelta]:
        """Answer a whole request piece by piece; why by which model is in the stream's ``routing``.

        Raises:
            LLMError: As for :meth:`chat`, at once or while iterating.
        """
        wish = wishes.from_request(request, policy=self._policy)
        plain = without_model(request)
        return self._router.stream(wish, request, lambda client: client.stream(plain))

    def close(self) -> None:
        """End what runs, and every model's server; safe to call twice.

        A model that is just being started is waited for, a download is left off.
        """
        self._loader.close()
        self._pool.close()
        self._book.save()

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
        """``"auto"``: a request that names it, or nothing, is routed."""
        return AUTO

    def capabilities(self) -> BackendCapabilities:
        """What every one of the models can do, as far as is known without loading them.

        ``max_context_tokens`` is the largest context of them, for a request that leaves the choice
        to the router gets a model that holds it; ``describe()["context_tokens"]`` has each one's.
        """
        loaded = self._pool.loaded()
        seen = [
            loaded[known.name].capabilities()
            if known.name in loaded
            else BackendCapabilities(
                streaming=True,
                tool_calling="native" if known.facts.tools else "best_effort",
                json_mode="native",
                vision=False,
                max_context_tokens=None,
            )
            for known in self._models.values()
            if known.facts.answers
        ]
        native = all(each.tool_calling == "native" for each in seen)
        enforced = all(each.json_mode == "native" for each in seen)
        return BackendCapabilities(
            streaming=True,
            tool_calling="native" if native else "best_effort",
            json_mode="native" if enforced else "prompt+validate",
            vision=bool(seen) and all(each.vision for each in seen),
            max_context_tokens=max(filter(None, self._contexts().values()), default=None),
        )

    def _contexts(self) -> dict[str, int | None]:
        loaded = self._pool.loaded()
        return {
            known.name: self._router.context_tokens(known, loaded.get(known.name))
            for known in self._models.values()
            if known.facts.answers
        }

    def config_snapshot(self) -> Mapping[str, object]:
        """The configuration: JSON-serializable, no secrets."""
        values: dict[str, object] = {
            "name": self._name,
            "kind": "router",
            "default_model": AUTO,
            "base_url": None,
            "model": None,
            "model_patterns": [name for each in self._models.values() for name in each.names],
            "memory_budget_bytes": self._budget,
            "idle_timeout_s": self._idle_timeout_s,
            "task_profile": {**asdict(self._profile), "tags": list(self._profile.tags)},
            **asdict(self._limits),
            **asdict(self._policy),
            "max_queue": self._max_queue,
            "models": {
                known.name: {"tags": list(known.tags), "server": known.config.public()}
                for known in self._models.values()
            },
        }
        secrets = [known.config.hash() for known in self._models.values()]
        text = json.dumps([values, secrets], sort_keys=True, ensure_ascii=False)
        return {
            **values,
            "context_window": self.capabilities().max_context_tokens,
            "config_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        }

    def server_snapshot(self) -> Mapping[str, object] | None:
        """The server of the model that was used last; None while none is loaded."""
        clients = list(self._pool.loaded().values())
        return clients[-1].server_snapshot() if clients else None

    def describe(self) -> Mapping[str, object]:
        """The whole composition, JSON-serializable; ``models`` holds each loaded one's own."""
        clients = self._pool.loaded()
        return {
            "client_class": type(self).__name__,
            "default_model": AUTO,
            "backend": self.config_snapshot(),
            "capabilities": asdict(self.capabilities()),
            "server": self.server_snapshot(),
            "counters": self._loader.counters(),
            "context_tokens": self._contexts(),
            "residency": self._pool.table(),
            "models": {name: client.describe() for name, client in clients.items()},
        }

    # --- beyond the contract ------------------------------------------------------------------

    def embed(
        self, texts: Sequence[str], *, model: str | None = None, truncate: bool = False
    ) -> EmbeddingResult:
        """A vector for each text, in order; each of Euclidean length 1.

        Vectors of different models cannot be compared, so these are never routed: they come from
        ``model``, else from the first embedding model that was listed, else from the first model.
        ``truncate`` is :meth:`runtime.LlamaClient.embed`'s.

        Raises:
            LLMError: As for :meth:`runtime.LlamaClient.embed`.
        """
        embedders = [each.name for each in self._models.values() if not each.facts.answers]
        name = self._router.named(model) or next(iter((*embedders, *self._models)))
        return self._router.use(name, lambda client: client.embed(texts, truncate=truncate))

    def count_tokens(
        self,
        text_or_messages: str | Sequence[LLMMessage] | LLMRequest,
        *,
        model: str | None = None,
        tools: Sequence[ToolSpec] = (),
        params: LLMChatParams | None = None,
    ) -> int:
        """Tokens by a model's own count; models differ.

        Args:
            text_or_messages: As for :meth:`runtime.LlamaClient.count_tokens`.
            model: Whose count; None for the first model that was listed and chats.
            tools: As there.
            params: As there.
        """
        name = self._router.named(model) or next(
            (known.name for known in self._models.values() if known.facts.answers),
            next(iter(self._models)),
        )
        return self._router.use(
            name, lambda client: client.count_tokens(text_or_messages, tools=tools, params=params)
        )

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
        """Answer with an instance of a type; see :meth:`runtime.LlamaClient.parse`."""
        shape = structured.shape_of(output_type)
        params = shape.params(temperature, max_tokens, provider_options)
        instance: T = shape.instance(self.chat(messages, model=model, params=params).text)
        return instance

    def healthcheck(self) -> BackendStatus:
        """Whether a request sent now would be served; asks the models that are loaded."""
        if self._pool.closed:
            return BackendStatus(
                ok=False, message="The client is closed.", checked_at=Provenance.now_iso()
            )
        states = {name: each.healthcheck() for name, each in self._pool.loaded().items()}
        ill = [f"{name}: {state.message}" for name, state in states.items() if not state.ok]
        return BackendStatus(
            ok=not ill,
            message="; ".join(ill) or f"{len(states)} of {len(self._models)} models are loaded",
            details={name: asdict(state) for name, state in states.items()},
            checked_at=Provenance.now_iso(),
        )
