"""One request to a server and its answer: sent, opened, read, and what a failed connection means.

Generators of effects (see :mod:`runtime.inference.effects`), shared by every client; no I/O here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import ConnectionLostError
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


def fetch(
    request: Callable[[Endpoint], HttpRequest], clock: Clock
) -> Flow[tuple[Endpoint, HttpHead, bytes]]:
    """A whole small answer, whatever its status.

    A request that broke off is sent again, to wherever the server is by then.
    """
    course = Course(max_retries=clock.limits.max_retries, emit=False)
    while True:
        try:
            endpoint = yield from locate(clock.left_s)
            if endpoint.generation:
                course.there(clock.started)
            head = yield from opened(request(endpoint), clock, "total")
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
            raise clock.timeout("connect" if exc.connecting else "total") from exc
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
