"""What a conversation with a server is made of, as data.

The logic of a request (what to send, when to send it again, when to give up) is written once, as a
generator of effects: it yields one, the driver performs it and sends the result back, or throws the
:class:`WireError` that came of it. The sync and the async client are two drivers of the same
generators, and tests drive them with no network at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from runtime.contracts import LLMDelta
    from runtime.engines.base import Endpoint

T = TypeVar("T")

Method = Literal["GET", "POST"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One HTTP request, ready to be sent.

    Attributes:
        base_url: Scheme, host, port and perhaps a path prefix.
        path: Appended to the base URL.
        body: The encoded body; None for GET.
        api_key: Sent as a bearer token.
    """

    base_url: str
    path: str
    method: Method = "POST"
    body: bytes | None = None
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpHead:
    """Status and headers of an answer; header names in lower case."""

    status: int
    headers: dict[str, str]

    @property
    def content_type(self) -> str:
        """The media type without its parameters, in lower case."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Locate:
    """Give me the server's address, waiting while it restarts. Result: an ``Endpoint``.

    The :class:`LLMError` that says why there is none is thrown into the flow.
    """

    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Send a request and wait for the head of its answer. Result: :class:`HttpHead`.

    Attributes:
        request: What to send, on a connection of its own.
        connect_timeout_s: Seconds for the connection alone.
        until: Instant (``time.monotonic``) by which the head must have come.
    """

    request: HttpRequest
    connect_timeout_s: float
    until: float


class Taken(NamedTuple):
    """What became of bytes on the shortcut of a :class:`Read`.

    Attributes:
        pieces: What is to be handed out.
        until: Instant by which the next bytes must have come.
    """

    pieces: Sequence[LLMDelta]
    until: float


@dataclass(frozen=True, slots=True)
class Read:
    """Give me the next bytes of the body, empty at its end. Result: ``bytes``.

    Attributes:
        until: Instant by which some must have come.
        shortcut: What to ask first about the bytes that come; None for nothing. Where it returns
            something, that is all there is to do with them: the flow is not woken, for every token
            would pay for that. It goes on waiting, and whatever the shortcut declines is for it.
    """

    until: float
    shortcut: Callable[[bytes], Taken | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Wait in line until a slot of the server is free. Result: a ``Place``, or None.

    It is kept until the end of the flow, or until it lines up again.

    Attributes:
        until: Instant by which it must be free.
        bounded: Whether a full line refuses it.
        long: Whether it brings a long prompt, which is begun when the head of an answer comes.
    """

    until: float
    bounded: bool = True
    long: bool = False


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand a piece of the answer to the caller. Result: None."""

    item: LLMDelta


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, unless the client is closed meanwhile. Result: None."""

    seconds: float


Effect: TypeAlias = Locate | Enter | Open | Read | Emit | Pause

Flow: TypeAlias = Generator[Effect, Any, T]
"""A request as a generator. The result of each effect is typed by the helpers below."""


class WireError(Exception):
    """The connection failed; the flow decides what that means for the caller."""


class UnreachableError(WireError):
    """No connection could be made (refused, no such host)."""


class UntrustedError(UnreachableError):
    """The server's certificate is not trusted, or is another's; the message says why."""


class BrokenError(WireError):
    """The connection ended before the answer did."""


class ExpiredError(WireError):
    """An instant passed.

    Attributes:
        connecting: Whether it was while connecting.
    """

    def __init__(self, message: str, *, connecting: bool = False) -> None:
        super().__init__(message)
        self.connecting = connecting


class StillQueuedError(ExpiredError):
    """It passed while the request waited in line.

    Attributes:
        ahead: How many were still before it.
        had_slot: Whether it waited for its turn to begin alone.
    """

    def __init__(self, ahead: int, *, had_slot: bool = False) -> None:
        super().__init__("its turn did not come")
        self.ahead = ahead
        self.had_slot = had_slot


class AbortedError(WireError):
    """The client was closed while the request ran.

    No flow catches it: the driver tells the caller.
    """


def locate(timeout_s: float) -> Flow[Endpoint]:
    """The endpoint to use now."""
    endpoint: Endpoint = yield Locate(timeout_s=timeout_s)
    return endpoint


def open_(request: HttpRequest, *, connect_timeout_s: float, until: float) -> Flow[HttpHead]:
    """The head of the answer to ``request``."""
    head: HttpHead = yield Open(request=request, connect_timeout_s=connect_timeout_s, until=until)
    return head


def read_all(until: float, limit: int) -> Flow[bytes]:
    """The whole body, or its first ``limit`` bytes and a little more."""
    parts: list[bytes] = []
    size = 0
    while size < limit:
        part: bytes = yield Read(until)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)
