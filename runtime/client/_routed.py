"""A router's models: what their owner says of them, and what can be known without loading one."""

from __future__ import annotations

import functools
import hashlib
import platform
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.client._ranking import Candidate
from runtime.client._speeds import Measured, speed_of
from runtime.engines.detect import choose
from runtime.errors import ConfigError, ModelNotFoundError, ModelTooLargeError
from runtime.hardware import cpu_budget, cpu_features, gpu_hint
from runtime.memo import file_identity
from runtime.settings import DEFAULT_CTX_SIZE, ServerConfig
from runtime.store.gguf import read_facts
from runtime.store.refs import AliasRef, PathRef, parse_ref

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.client._speeds import SpeedBook
    from runtime.store import LocalModel, ModelStore, PullProgress


DEFAULT_SLOTS: Final = 4
"""What ``parallel="auto"`` comes to where there is room."""


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """One of the models of a :class:`runtime.RoutingClient`.

    Attributes:
        model: A model reference, or the whole configuration of its server.
        tags: What it is good for, in the caller's own words; a request's tags must be among them.
        name: How requests and answers name it; None for the configuration's alias, else the
            reference, or the file's name where that is a path.
        usd_per_million_tokens: What its use is to count as, prompt and answer alike, for requests
            with ``max_cost_usd`` or the priority ``cost``. A local model costs nothing.
    """

    model: str | ServerConfig
    tags: tuple[str, ...] = field(default=(), kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    usd_per_million_tokens: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        tags: object = self.tags
        if isinstance(tags, str):
            raise ConfigError(f"tags is {tags!r}.", hint=f"Pass ({tags!r},).")
        if not 0 <= self.usd_per_million_tokens < float("inf"):
            raise ConfigError(
                f"usd_per_million_tokens is {self.usd_per_million_tokens!r}.",
                hint="It is 0 or more.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    parameters: int | None = None
    quantization: str | None = None
    size_bytes: int | None = None
    context: int | None = None
    slots: int = DEFAULT_SLOTS
    answers: bool = True
    tools: bool = False
    needed_bytes: int | None = None
    file_pages_bytes: int = 0
    identity: str | None = None


class KnownModel:
    """A routed model with its settings and facts. Any thread may use it.

    Attributes:
        name: How requests and answers name it.
        names: Every name it answers to.
        config: The settings of its server.
        tags: What it is good for.
    """

    def __init__(
        self, routed: RoutedModel, *, shared: Mapping[str, Any], store: ModelStore
    ) -> None:
        """Look at the model without fetching or loading it.

        Args:
            routed: What its owner says.
            shared: Settings that hold where the model's own configuration says nothing.
            store: Where it is, or will be.

        Raises:
            ModelNotFoundError: The reference cannot ever name a model.
            ModelFormatError: Its file is no model.
        """
        config = routed.model if isinstance(routed.model, ServerConfig) else None
        own = {name: getattr(config, name) for name in config.model_fields_set} if config else {}
        reference: str = config.model if config else str(routed.model)
        self.name = routed.name or own.get("alias") or _name_of(reference)
        self.names = tuple(dict.fromkeys((self.name, reference)))
        # Under the router's name for it the engine knows it, too, so that answers carry it.
        given = {"port": 0, **shared, **own, "model": reference, "alias": self.name}
        self.config = ServerConfig(**given)
        self.tags = tuple(routed.tags)
        self._price = routed.usd_per_million_tokens
        self._store = store
        self._lock = threading.Lock()
        self._build = _build_of(self.config)
        self._facts = self._look(self._found())

    @property
    def facts(self) -> _Facts:
        """What is known of it now."""
        return self._facts

    @property
    def key(self) -> str | None:
        """Under which its speed is kept; None before it is on disk."""
        identity = self._facts.identity
        return None if identity is None else f"{self._build}|{identity}"

    def candidate(
        self, book: SpeedBook, *, loaded: bool, context_tokens: int | None = None
    ) -> Candidate:
        """What ranking needs to know of it."""
        facts, key = self._facts, self.key
        return Candidate(
            name=self.name,
            tags=self.tags,
            loaded=loaded,
            answers=facts.answers,
            parameters=facts.parameters,
            quantization=facts.quantization,
            needed_bytes=facts.needed_bytes,
            context_tokens=context_tokens,
            usd_per_million_tokens=self._price,
            speed=speed_of(
                book.get(key) if key else None,
                book.among(f"{self._build}|", but=key or ""),
                parameters=facts.parameters,
                size_bytes=facts.size_bytes,
            ),
        )

    def weighed(self, measured: Measured) -> Measured:
        """A measurement with the model's size, by which others are reckoned."""
        facts = self._facts
        return replace(
            measured,
            parameters=float(facts.parameters or 0),
            size_bytes=float(facts.size_bytes or 0),
        )

    def prepare(self, progress: Callable[[PullProgress], None] | None) -> int:
        """Fetch it unless it is on disk; returns the memory it will take, in bytes.

        Raises:
            LLMError: It cannot be had.
        """
        local = self._store.pull(self.config.model, progress=progress)
        facts = self._look(local)
        with self._lock:
            self._facts = facts
        return facts.needed_bytes or facts.size_bytes or 0

    def _found(self) -> LocalModel | None:
        try:
            return self._store.resolve(self.config.model)
        except ModelNotFoundError:
            ref = parse_ref(self.config.model)
            unknown = isinstance(ref, AliasRef) and _entry(self._store, ref.name) is None
            if unknown or isinstance(ref, PathRef):
                raise  # it is nowhere to be fetched from
            return None

    def _look(self, local: LocalModel | None) -> _Facts:
        if local is None:
            entry = _entry(self._store, self.config.model)
            if entry is None:
                return _Facts()
            return _Facts(
                parameters=entry.parameters,
                quantization=entry.quantization,
                size_bytes=entry.size_bytes,
                context=self._context(entry.context),
                slots=self._slots,
                answers=entry.kind not in {"embedding", "reranker"},
                tools=entry.tools,
                needed_bytes=entry.size_bytes,
            )
        read = read_facts(local.path)
        pages, context, slots = 0, self._context(read.context_train), self._slots
        try:
            plan = self._store.plan(local.reference, self.config)
            needed, pages = plan.host_bytes, plan.file_pages_bytes
            context, slots = plan.request.slot_ctx, plan.request.parallel
        except ModelTooLargeError as exc:  # beside what is loaded now; the budget decides later
            needed = exc.needed_bytes
        return _Facts(
            parameters=read.parameters,
            quantization=read.quantization,
            size_bytes=read.size_bytes,
            context=context,
            slots=slots,
            answers=not read.is_embedding_model,
            tools="tools" in (self.config.chat_template or read.chat_template or ""),
            needed_bytes=needed,
            file_pages_bytes=pages,
            identity=local.sha256 or file_identity(local.path),
        )

    @property
    def _slots(self) -> int:
        asked_for = self.config.parallel
        return DEFAULT_SLOTS if asked_for == "auto" else asked_for

    def _context(self, trained: int) -> int | None:
        """Before the file can be looked at, or while other models leave it no room."""
        wanted = self.config.ctx_size or DEFAULT_CTX_SIZE
        if wanted == "auto":
            return trained or None
        return min(wanted, trained or wanted)


def known_models(
    models: Sequence[RoutedModel | ServerConfig | str],
    *,
    shared: Mapping[str, Any],
    store: ModelStore,
) -> dict[str, KnownModel]:
    """A router's models by name, in the order in which they were listed.

    Raises:
        ConfigError: There is none, or two answer to the same name.
        LLMError: One cannot be what it is said to be.
    """
    if isinstance(models, str) or not models:
        raise ConfigError(f"models is {models!r}.", hint="Pass a list of at least one model.")
    for name in ("port", "alias"):
        if name in shared:
            raise ConfigError(
                f"{name} cannot be the same for several models.",
                hint=f"Give it to one of them: ServerConfig(..., {name}=...).",
            )
    known: dict[str, KnownModel] = {}
    for each in models:
        routed = each if isinstance(each, RoutedModel) else RoutedModel(each)
        made = KnownModel(routed, shared=shared, store=store)
        if made.name in known:
            raise ConfigError(
                f"Two models are called {made.name!r}.",
                hint="Tell them apart: RoutedModel(..., name=...).",
            )
        known[made.name] = made
    return known


def _name_of(reference: str) -> str:
    return Path(reference).stem if isinstance(parse_ref(reference), PathRef) else reference


def _entry(store: ModelStore, name: str) -> Any:
    return next((entry for entry in store.catalog() if entry.name == name), None)


def _build_of(config: ServerConfig) -> str:
    """Engine build and machine, as far as they decide about speed."""
    gpu_present = config.device != "cpu" and gpu_hint()
    info = choose(config, gpu_present=gpu_present).info
    threads = config.threads or cpu_budget().threads
    place = "cpu" if not gpu_present else f"{config.device} {config.gpu_layers}"
    return f"{info.kind} {info.version}|{_machine()}|{threads} threads|{place}"


@functools.cache
def _machine() -> str:
    machine, features = cpu_features()
    digest = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:8]
    return f"{machine or platform.machine()} {digest}"
