"""The protocols that clients and adapters fulfil."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from runtime.contracts.types import (
        BackendCapabilities,
        LLMChatParams,
        LLMDelta,
        LLMMessage,
        LLMRequest,
        LLMResponse,
        LLMStreamEvent,
    )


@runtime_checkable
class LLMClient(Protocol):
    """A client of one or more language models.

    Every method may be called from any thread. Failures are :class:`runtime.errors.LLMError`.
    """

    def chat(
        self, messages: Sequence[LLMMessage], *, model: str, params: LLMChatParams
    ) -> LLMResponse:
        """Answer a conversation."""
        ...

    def stream_chat(
        self, messages: Sequence[LLMMessage], *, model: str, params: LLMChatParams
    ) -> Iterator[LLMStreamEvent]:
        """Answer piece by piece: deltas, then exactly one completed event with the whole text."""
        ...

    def generate(self, request: LLMRequest) -> LLMResponse:
        """Answer a whole request, tools and schema included."""
        ...

    def stream(self, request: LLMRequest) -> Iterator[LLMDelta]:
        """Answer a whole request piece by piece."""
        ...

    def close(self) -> None:
        """Release everything the client holds; safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def default_model(self) -> str:
        """The model used when a request names none."""
        ...

    def capabilities(self) -> BackendCapabilities:
        """What this client can do."""
        ...

    def config_snapshot(self) -> Mapping[str, object]:
        """The stable configuration: JSON-serializable, safe to print, no secrets."""
        ...

    def server_snapshot(self) -> Mapping[str, object] | None:
        """The managed server as it is now, or None when this client owns none."""
        ...

    def describe(self) -> Mapping[str, object]:
        """The whole composition, JSON-serializable.

        At least the keys ``client_class``, ``default_model``, ``backend`` (the config snapshot),
        ``capabilities`` and ``server`` (the server snapshot).
        """
        ...


@runtime_checkable
class LLMProviderAdapter(Protocol):
    """The smaller interface that a provider offers to a framework."""

    provider_name: str

    def chat(
        self, messages: Sequence[LLMMessage], *, model: str, params: LLMChatParams
    ) -> LLMResponse:
        """Answer a conversation."""
        ...

    def stream_chat(
        self, messages: Sequence[LLMMessage], *, model: str, params: LLMChatParams
    ) -> Iterator[LLMStreamEvent]:
        """Answer piece by piece."""
        ...
