"""Plain ASGI: a request's body is read, an answer sent, and a client that goes away noticed.

The answers of models are written without Starlette's response classes: those start a task group
for each stream and pass every piece through two generators.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Final

import anyio

from runtime.errors import LLMInvalidRequestError
from runtime.inference import large_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from starlette.types import Receive, Send

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""Longest body that is read; the core refuses what is too large for an engine long before."""

_STREAM: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # a proxy is not to hold pieces back
}

_WRITER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

WRITE_NOW: Final = "runtime.write_now"
"""An extension of ASGI that our server offers: a function that writes a piece of the body that has
begun, at once and without being awaited. It returns False where the piece must be sent instead."""


class ClientGoneError(Exception):
    """The client went away before its request was read."""


class TooLargeError(LLMInvalidRequestError):
    """A body is longer than what is read (HTTP 413)."""


AT_ONCE_BYTES: Final = 128 * 1024
"""Longest body that is worked on by the event loop: a megabyte takes 17 ms of its time as one text,
24 ms in messages of 1,000 characters, so that streams wait for 3 ms at most."""


async def read_body(receive: Receive) -> bytes:
    """A request's body.

    Raises:
        TooLargeError: It is too long.
        ClientGoneError: It did not come.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise TooLargeError(
                f"The body is longer than {MAX_BODY_BYTES:,} bytes.", hint="Send less at once."
            )
        if not event.get("more_body", False):
            return b"".join(parts)


def object_of(data: bytes) -> dict[str, object]:
    """The JSON object that a request's body holds.

    Raises:
        LLMInvalidRequestError: It is none.
    """
    try:
        body = json.loads(data) if len(data) <= AT_ONCE_BYTES else large_json.read(data)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
        raise LLMInvalidRequestError(
            f"The body is not JSON: {exc}.", hint="Send a JSON object in UTF-8."
        ) from exc
    if not isinstance(body, dict):
        raise LLMInvalidRequestError(
            f"The body is a JSON {type(body).__name__}, not an object.", hint="Send an object."
        )
    return body


def encoded(body: Mapping[str, object]) -> bytes:
    """A JSON object as the body of an answer."""
    return "".join(large_json.pieces(body, _WRITER)).encode("utf-8", "surrogatepass")


class Reply:
    """The answer to one request.

    Attributes:
        status: The status that was sent, or None before.
    """

    def __init__(self, send: Send, write_now: Callable[[bytes], bool] | None = None) -> None:
        self._send = send
        self._write_now = write_now
        self.status: int | None = None

    async def whole(
        self,
        status: int,
        body: Mapping[str, object] | bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a JSON object, which may be encoded already."""
        data = body if isinstance(body, bytes) else encoded(body)
        told = {"content-type": "application/json", "content-length": str(len(data))}
        await self._start(status, {**told, **(headers or {})})
        await self._send({"type": "http.response.body", "body": data})

    async def begin(self) -> None:
        """Send the head of a stream of events."""
        await self._start(200, _STREAM)

    async def piece(self, data: bytes) -> None:
        """Send a piece of the stream."""
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def piece_now(self, data: bytes) -> bool:
        """Send a piece of the stream that has begun, at once; False where that is not possible."""
        return self._write_now is not None and (not data or self._write_now(data))

    async def end(self, data: bytes) -> None:
        """Send the last piece of the stream."""
        await self._send({"type": "http.response.body", "body": data})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        encoded = [
            (name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


@contextlib.asynccontextmanager
async def while_connected(receive: Receive) -> AsyncGenerator[anyio.CancelScope]:
    """Cancels what is within when the client goes away; the body must have been read."""
    with anyio.CancelScope() as scope:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            scope.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield scope
        finally:
            watcher.cancel()
