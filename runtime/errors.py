"""The error tree: every failure a caller can meet, each with facts and a next step.

The six classes directly below :class:`LLMError` are the provider-neutral contract. The more precise
classes below them are this runtime's own and carry typed attributes, so that a program can act on a
failure without reading its message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def _rebuild(kind: type[LLMError], args: tuple[object, ...], facts: dict[str, object]) -> LLMError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


@dataclass(eq=False, repr=False)
class LLMError(Exception):
    """Base of every error this runtime raises on purpose.

    Attributes:
        message: What happened and why, one or two sentences.
        hint: The one thing to do next, or None when there is nothing to do.
    """

    message: str = ""
    hint: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors with keyword-only facts would not survive the way between processes otherwise.
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class LLMAuthError(LLMError):
    """The engine, gateway or model hub refused the credentials (401, 403, gated model)."""


class LLMRateLimitError(LLMError):
    """Too many requests: HTTP 429, a full queue, or the hub's rate limit."""


class LLMInvalidRequestError(LLMError):
    """The request cannot be right: bad arguments, unknown model, prompt longer than the context."""


class LLMProviderError(LLMError):
    """The engine side failed: crash, failed start, timeout, broken connection, 5xx."""


@dataclass(eq=False, repr=False, kw_only=True)
class LLMBadResponseError(LLMError):
    """The answer is empty, malformed, violates its schema, or was cut off.

    Attributes:
        partial_text: What had arrived, or None when nothing did.
    """

    partial_text: str | None = None


class LLMCapabilityError(LLMError):
    """The engine or the model cannot do what is asked (embeddings, vision, tools, a GPU)."""


# --- invalid requests -------------------------------------------------------------------------


class ConfigError(LLMInvalidRequestError):
    """A setting is unknown or has a value that cannot work."""


@dataclass(eq=False, repr=False, kw_only=True)
class ModelNotFoundError(LLMInvalidRequestError):
    """No model answers to this reference.

    Attributes:
        reference: What was asked for.
        nearest: Known names that look alike, best first.
    """

    reference: str
    nearest: tuple[str, ...] = ()


@dataclass(eq=False, repr=False, kw_only=True)
class ModelFormatError(LLMInvalidRequestError):
    """A file is not a GGUF model that can be read.

    Attributes:
        path: The file, when it is known.
        offset: The byte at which reading failed, when it is known.
    """

    path: Path | None = None
    offset: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class ModelTooLargeError(LLMInvalidRequestError):
    """Model and context need more memory than there is.

    Attributes:
        needed_bytes: What the configuration needs.
        available_bytes: What this machine (or its cgroup) has.
    """

    needed_bytes: int
    available_bytes: int


@dataclass(eq=False, repr=False, kw_only=True)
class NoModelFitsError(LLMInvalidRequestError):
    """None of a router's models fits what a request wants.

    Attributes:
        excluded: For each model the reason why not.
    """

    excluded: Mapping[str, str]


@dataclass(eq=False, repr=False, kw_only=True)
class UnenforceableSchemaError(LLMInvalidRequestError):
    """A schema is to be enforced strictly while decoding, and cannot be.

    Attributes:
        places: JSON pointer and keyword of everything that only validation would catch; empty when
            it is the whole, or no single keyword.
    """

    places: tuple[tuple[str, str], ...] = ()


@dataclass(eq=False, repr=False, kw_only=True)
class ContextOverflowError(LLMInvalidRequestError):
    """The prompt does not fit the context of one request.

    Attributes:
        prompt_tokens: Tokens of the rendered prompt, or None when the engine did not say.
        context_tokens: Tokens one request may hold, or None when the engine did not say.
    """

    prompt_tokens: int | None
    context_tokens: int | None


@dataclass(eq=False, repr=False, kw_only=True)
class SessionNotFoundError(LLMInvalidRequestError):
    """There is no session of that name.

    Attributes:
        path: Where it would be.
    """

    path: Path


@dataclass(eq=False, repr=False, kw_only=True)
class SessionMismatchError(LLMInvalidRequestError):
    """A saved session is not of this model, engine or context, or did not prove to be.

    Attributes:
        differences: What differs, by name: how it was saved, and how it is here.
    """

    differences: Mapping[str, tuple[str, str]]


class TextTooLongError(ContextOverflowError):
    """A text to embed has more tokens than can be embedded at once.

    Attributes:
        index: The first such text's place in the list.
        too_long: Tokens of every text that is too long, by its place; None when the server did not
            say.
        limit: Most tokens of one text, or None when the server did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        too_long: Mapping[int, int | None],
        limit: int | None,
        hint: str | None = None,
    ) -> None:
        index = min(too_long)
        super().__init__(message, prompt_tokens=too_long[index], context_tokens=limit, hint=hint)
        self.index = index
        self.too_long = dict(too_long)
        self.limit = limit


# --- rate limits ------------------------------------------------------------------------------


@dataclass(eq=False, repr=False, kw_only=True)
class TooManyRequestsError(LLMRateLimitError):
    """The server answered 429.

    Attributes:
        retry_after_s: Seconds the server asks to wait, or None when it did not say.
    """

    retry_after_s: float | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class QueueFullError(LLMRateLimitError):
    """Every slot is busy, and as many requests wait as may.

    Attributes:
        waiting: Requests in line.
        running: Requests at work.
        max_queue: How many may be in line.
        retry_after_s: Seconds until there will be room for one more, by the time that requests
            took so far; None when none has ended yet.
    """

    waiting: int
    running: int
    max_queue: int
    retry_after_s: float | None = None


# --- provider failures ------------------------------------------------------------------------


@dataclass(eq=False, repr=False, kw_only=True)
class ServerStatusError(LLMProviderError):
    """The server answered with an HTTP status that says the failure is on its side.

    Attributes:
        status: The HTTP status.
    """

    status: int


@dataclass(eq=False, repr=False, kw_only=True)
class EngineNotInstalledError(LLMProviderError):
    """The engine that was named is not on this machine.

    Attributes:
        engine: The engine's kind.
    """

    engine: str


@dataclass(eq=False, repr=False, kw_only=True)
class EngineStartError(LLMProviderError):
    """The engine did not come up.

    Attributes:
        diagnosis: A short machine-readable cause, such as ``"not_gguf"`` or ``"out_of_memory"``;
            ``"unknown"`` when no cause was recognised.
        exit_code: The child's exit code, or None when it was ended by a signal or still ran.
        signal: The signal's name (``"SIGILL"``) when one ended the child.
        log_tail: The last lines the engine printed, oldest first.
        log_path: The file with the whole output, when there is one.
    """

    diagnosis: str = "unknown"
    exit_code: int | None = None
    signal: str | None = None
    log_tail: tuple[str, ...] = ()
    log_path: Path | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class EngineNotRunningError(LLMProviderError):
    """The managed server is stopped or failed, so nothing can answer.

    Attributes:
        state: The server's state when the request came.
    """

    state: str


@dataclass(eq=False, repr=False, kw_only=True)
class RequestTimeoutError(LLMProviderError):
    """A deadline passed.

    Attributes:
        phase: Which one: ``"connect"``, ``"first_token"``, ``"stall"`` or ``"total"``; of a router
            also ``"load"`` and ``"room"``.
        after_s: Seconds waited.
        partial_text: What had arrived, or None.
        doing: What the engine was doing, as far as that is known, or None.
    """

    phase: str
    after_s: float
    partial_text: str | None = None
    doing: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class QueueTimeoutError(RequestTimeoutError):
    """The total deadline passed while the request waited for a slot; its phase is ``"queue"``.

    Attributes:
        ahead: Requests that were still in line before it.
    """

    phase: str = field(default="queue", init=False)
    ahead: int


@dataclass(eq=False, repr=False, kw_only=True)
class ConnectionLostError(LLMProviderError):
    """The connection broke or was refused before the answer was complete.

    Attributes:
        partial_text: What had arrived, or None.
    """

    partial_text: str | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class CrashingRequestError(LLMProviderError):
    """A request is given up because the engine died of it, each time it was asked.

    Attributes:
        endings: How the process ended each time (``"SIGSEGV"``), oldest first.
        partial_text: What had arrived, or None.
    """

    endings: tuple[str, ...]
    partial_text: str | None = None

    @property
    def crashes(self) -> int:
        """How often it died."""
        return len(self.endings)


@dataclass(eq=False, repr=False, kw_only=True)
class DownloadError(LLMProviderError):
    """A model could not be fetched.

    Attributes:
        source: Where it was to come from.
        status: The HTTP status, when one was the reason.
    """

    source: str | None = None
    status: int | None = None


@dataclass(eq=False, repr=False, kw_only=True)
class StorageError(LLMProviderError):
    """The disk refused: not writable, full, or a file that vanished.

    Attributes:
        path: The file or folder concerned.
        needed_bytes: Room that is needed, when room was the reason and it is known.
        available_bytes: Room that there is, likewise.
    """

    path: Path | None = None
    needed_bytes: int | None = None
    available_bytes: int | None = None


# --- bad responses ----------------------------------------------------------------------------


class CutOffError(LLMBadResponseError):
    """The token budget ended an answer in the middle of something that must be whole."""


@dataclass(eq=False, repr=False, kw_only=True)
class SchemaViolationError(LLMBadResponseError):
    """An answer is not what its JSON Schema asks for.

    Attributes:
        pointer: JSON Pointer to the offending value within the answer; empty for the whole.
        reason: What is wrong with it.
        repeated_key: The key that occurs twice in one object, if that is what is wrong.
    """

    pointer: str
    reason: str
    repeated_key: str | None = None


class UnclosableAnswerError(CutOffError):
    """A structured answer was cut off, and no valid completion of it was found in time."""


class UnreadableAnswerError(LLMBadResponseError):
    """The server could not read what its model wrote in the form of the model's chat template."""


@dataclass(eq=False, repr=False, kw_only=True)
class IntegrityError(LLMBadResponseError):
    """A file's SHA-256 is not the expected one.

    Attributes:
        path: The file.
        expected: The digest that was promised, hexadecimal.
        actual: The digest that was found, hexadecimal.
    """

    path: Path
    expected: str
    actual: str
