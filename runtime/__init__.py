"""A managed local-inference runtime around llama.cpp.

    from runtime import LlamaClient

    with LlamaClient() as client:
        print(client.chat("Say hello.").text)

Every name is imported when it is first used, so that ``import runtime`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.client._routed import RoutedModel
    from runtime.client._stream import ThoughtEvent
    from runtime.client.aio import AsyncLlamaClient
    from runtime.client.routing import RoutingClient
    from runtime.client.sync import LlamaClient
    from runtime.contracts import (
        BackendCapabilities,
        BackendStatus,
        EmbeddingResult,
        JSONMode,
        LLMChatParams,
        LLMClient,
        LLMDelta,
        LLMMessage,
        LLMProviderAdapter,
        LLMRequest,
        LLMResponse,
        LLMRole,
        LLMStreamEvent,
        LLMStreamEventKind,
        LLMToolResult,
        Provenance,
        TaskPriority,
        TaskProfile,
        ToolCall,
        ToolCallDelta,
        ToolCallingMode,
        ToolCostHints,
        ToolMetadata,
        ToolSideEffects,
        ToolSpec,
        Usage,
    )
    from runtime.errors import (
        ConfigError,
        ConnectionLostError,
        ContextOverflowError,
        CrashingRequestError,
        CutOffError,
        DownloadError,
        EngineNotInstalledError,
        EngineNotRunningError,
        EngineStartError,
        IntegrityError,
        LLMAuthError,
        LLMBadResponseError,
        LLMCapabilityError,
        LLMError,
        LLMInvalidRequestError,
        LLMProviderError,
        LLMRateLimitError,
        ModelFormatError,
        ModelNotFoundError,
        ModelTooLargeError,
        NoModelFitsError,
        QueueFullError,
        QueueTimeoutError,
        RequestTimeoutError,
        SchemaViolationError,
        ServerStatusError,
        SessionMismatchError,
        SessionNotFoundError,
        StorageError,
        TextTooLongError,
        TooManyRequestsError,
        UnclosableAnswerError,
        UnenforceableSchemaError,
        UnreadableAnswerError,
    )
    from runtime.inference.bounds import Bounds
    from runtime.inference.embeddings import TruncatedEmbeddingResult, TruncatedText
    from runtime.inference.session_result import Session, SessionMessage
    from runtime.server.manager import ServerManager
    from runtime.server.snapshot import ServerSnapshot
    from runtime.settings import RestartPolicy, ServerConfig
    from runtime.store import ModelStore
    from runtime.store.sessions import SessionInfo, SessionStore

    __version__: str

__all__ = [
    "AsyncLlamaClient",
    "BackendCapabilities",
    "BackendStatus",
    "Bounds",
    "ConfigError",
    "ConnectionLostError",
    "ContextOverflowError",
    "CrashingRequestError",
    "CutOffError",
    "DownloadError",
    "EmbeddingResult",
    "EngineNotInstalledError",
    "EngineNotRunningError",
    "EngineStartError",
    "IntegrityError",
    "JSONMode",
    "LLMAuthError",
    "LLMBadResponseError",
    "LLMCapabilityError",
    "LLMChatParams",
    "LLMClient",
    "LLMDelta",
    "LLMError",
    "LLMInvalidRequestError",
    "LLMMessage",
    "LLMProviderAdapter",
    "LLMProviderError",
    "LLMRateLimitError",
    "LLMRequest",
    "LLMResponse",
    "LLMRole",
    "LLMStreamEvent",
    "LLMStreamEventKind",
    "LLMToolResult",
    "LlamaClient",
    "ModelFormatError",
    "ModelNotFoundError",
    "ModelStore",
    "ModelTooLargeError",
    "NoModelFitsError",
    "Provenance",
    "QueueFullError",
    "QueueTimeoutError",
    "RequestTimeoutError",
    "RestartPolicy",
    "RoutedModel",
    "RoutingClient",
    "SchemaViolationError",
    "ServerConfig",
    "ServerManager",
    "ServerSnapshot",
    "ServerStatusError",
    "Session",
    "SessionInfo",
    "SessionMessage",
    "SessionMismatchError",
    "SessionNotFoundError",
    "SessionStore",
    "StorageError",
    "TaskPriority",
    "TaskProfile",
    "TextTooLongError",
    "ThoughtEvent",
    "TooManyRequestsError",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallingMode",
    "ToolCostHints",
    "ToolMetadata",
    "ToolSideEffects",
    "ToolSpec",
    "TruncatedEmbeddingResult",
    "TruncatedText",
    "UnclosableAnswerError",
    "UnenforceableSchemaError",
    "UnreadableAnswerError",
    "Usage",
    "__version__",
]

_HOMES = {
    "AsyncLlamaClient": "runtime.client.aio",
    "Bounds": "runtime.inference.bounds",
    "LlamaClient": "runtime.client.sync",
    "ModelStore": "runtime.store",
    "RestartPolicy": "runtime.settings",
    "RoutedModel": "runtime.client._routed",
    "RoutingClient": "runtime.client.routing",
    "ServerConfig": "runtime.settings",
    "ServerManager": "runtime.server.manager",
    "ServerSnapshot": "runtime.server.snapshot",
    "Session": "runtime.inference.session_result",
    "SessionInfo": "runtime.store.sessions",
    "SessionMessage": "runtime.inference.session_result",
    "SessionStore": "runtime.store.sessions",
    "ThoughtEvent": "runtime.client._stream",
    "TruncatedEmbeddingResult": "runtime.inference.embeddings",
    "TruncatedText": "runtime.inference.embeddings",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - slow to import, seldom asked for

        value = version("llama-runtime")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        contracts = import_module("runtime.contracts")
        home = contracts if name in contracts.__all__ else import_module("runtime.errors")
        value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
