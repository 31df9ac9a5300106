"""One request to a server and its answer: sent, opened, read, and what a failed connection means.

Generators of effects (see :mod:`runtime.inference.effects`), shared by every client; no I/O here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import ConnectionLostError, LLMProviderError, RequestTimeoutError
from runtime.inference import failures, wishes
from runtime.inference.effects import (
    BrokenError,
    ExpiredError,
    HttpRequest,
    Pause,
    UnreachableError,
    UntrustedError,
    WireError,
    locate,
    open_,
    read_all,
)
from runtime.inference.recovery import BrokeOffError, Course

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Clock, Phase
    from runtime.inference.effects import Flow, HttpHead

CHAT_PATH = "/v1/chat/completions"
TEXT_PATH = "/v1/completions"

MAX_BODY_BYTES = 256 * 1024 * 1024
"""Longest answer that is read into memory."""


def post(endpoint: Endpoint, path: str, body: object) -> HttpRequest:
    """A JSON request to an endpoint."""
    return HttpRequest(
        base_url=endpoint.base_url,
        path=path,
        body=wishes.encode(body),
        api_key=endpoint.api_key,
    )


def opened(wanted: HttpRequest, clock: Clock, phase: Phase) -> Flow[HttpHead]:
    """The head of the answer to one request.

    Raises:
        BrokeOffError: The server is not there, or was not for long enough.
        ConnectionLostError: It is one that is not trusted.
        ExpiredError: The deadline passed.
    """
    clock.mark()
    try:
        return (
            yield from open_(
                wanted,
                connect_timeout_s=clock.limits.connect_timeout_s,
                until=clock.until(phase),
            )
        )
    except UntrustedError as exc:  # and will not be the next time
        raise failures.untrusted(wanted.base_url, exc) from exc
    except (UnreachableError, BrokenError) as exc:
        raise broken(exc, wanted.base_url) from exc


def located(clock: Clock, *, partial_text: str | None = None) -> Flow[Endpoint]:
    """Where to send a request now, waited for until its total deadline.

    Raises:
        RequestTimeoutError: There was none by then; says what was waited for.
        LLMError: There is none.
    """
    try:
        return (yield from locate(clock.left_s))
    except RequestTimeoutError as exc:
        doing = exc.doing or exc.message.rstrip(".")
        raise clock.timeout("total", partial_text=partial_text, doing=doing) from exc


def late(
    exc: ExpiredError,
    clock: Clock,
    phase: Phase,
    *,
    address: str,
    doing: str,
    partial_text: str | None = None,
) -> Flow[RequestTimeoutError]:
    """The error for a deadline that passed, with what the engine was doing.

    Args:
        exc: How that was noticed.
        clock: The request's deadlines.
        phase: Which one it was, once there was a connection.
        address: Where the request was sent.
        doing: What the engine was doing, as far as its answer told.
        partial_text: What had arrived.
    """
    if exc.connecting:
        silent = f"{address} took none"
        return clock.timeout("connect", partial_text=partial_text, doing=silent)
    told = [doing]
    try:
        yield from locate(0.0)
    except (LLMProviderError, WireError) as state:  # a managed server that is not ready says so
        told.append(str(state.args[0]).rstrip("."))
    return clock.timeout(
        phase, partial_text=partial_text, doing="; ".join(part for part in told if part)
    )


def fetch(
    request: Callable[[Endpoint], HttpRequest], clock: Clock, *, doing: str | None = None
) -> Flow[tuple[Endpoint, HttpHead, bytes]]:
    """A whole small answer, whatever its status.

    A request that broke off is sent again, to wherever the server is by then.

    Args:
        request: What to send to where the server is.
        clock: The deadlines.
        doing: What the engine is doing meanwhile; None for what it was asked.
    """
    course = Course(max_retries=clock.limits.max_retries, emit=False)
    while True:
        try:
            endpoint = yield from located(clock)
            if endpoint.generation:
                course.there(clock.started)
            wanted = request(endpoint)
            head = yield from opened(wanted, clock, "total")
            try:
                body = yield from read_all(clock.until("total"), MAX_BODY_BYTES)
            except BrokenError as exc:
                raise broken(exc, endpoint.base_url) from exc
        except BrokeOffError as exc:
            pause_s = course.broke_off(course.blank(), exc, clock.now)
            if pause_s is None:
                raise exc.error from exc.__cause__
            yield Pause(pause_s)
        except ExpiredError as exc:
            told = doing or f"the server had not answered to {wanted.path}"
            address = endpoint.base_url
            raise (yield from late(exc, clock, "total", address=address, doing=told)) from exc
        else:
            return endpoint, head, body


def broken(exc: WireError, address: str) -> BrokeOffError:
    """What it means that a connection to an address failed."""
    reached = not isinstance(exc, UnreachableError)
    if not reached:
        error = ConnectionLostError(
            f"Nothing answers at {address}: {exc}.",
            hint="Is the server running, and is its address right?",
        )
    else:
        error = ConnectionLostError(
            f"The connection to {address} broke before the answer was complete: {exc}.",
            hint="Send the request again; the server's log may say why it ended.",
        )
    return BrokeOffError(error, reached=reached)
