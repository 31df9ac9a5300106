"""Who may ask the gateway, and how much: one ASGI middleware.

A server on loopback is open to every program of this machine, and through the browser to every web
page that is looked at on it. A page reaches it under its own name once that name is made to point
here (DNS rebinding), so the ``Host`` header must name us; it can send requests without reading the
answers (cross-site request forgery), so ``Origin`` and ``Sec-Fetch-Site`` must not name another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from runtime.gateway.judgement import Refusal, head_of, judge, shown, shows_key, too_long

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from runtime.gateway.judgement import Asked
    from runtime.gateway.rules import Rules

log = logging.getLogger(__name__)

_ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
TRUSTED: Final = "trusted"
"""In the state of a request: whether it showed a key, or none is asked for."""

_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"cookie"})


class Guard:
    """Lets in what keeps to the rules, with its whole body; answers the rest itself.

    The application sees no credentials, and bodies in one piece: nothing slow or endless reaches
    it. WebSockets are refused, for there are none to be had.
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        """Guard ``app`` by ``rules``."""
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        rules = self._rules
        asked = head_of(scope)
        refusal = judge(asked, rules)
        headers = _headers(asked.one(b"origin"), rules)
        answer = _Answer(send, headers, rules.write_patience_s)
        if refusal is None and asked.is_preflight:
            await answer.preflight(asked)
            return
        body = b""
        if refusal is None:
            read = await self._read(receive)
            if read is None:
                return  # the client went away
            if isinstance(read, Refusal):
                refusal = read
            else:
                body = read
        if refusal is not None:
            log.info("refused %s %s: %s", asked.method, shown(asked.path), refusal.code)
            await answer.refuse(refusal, asked.path)
            return
        inner = _inner_scope(scope, trusted=shows_key(asked, rules))
        await self._app(inner, _replay(body, receive), answer)

    async def _read(self, receive: Receive) -> bytes | Refusal | None:
        """The whole body; a refusal when it is too long or too slow; None when the client left."""
        rules = self._rules
        pieces: list[bytes] = []
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rules.body_patience_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > rules.max_body_bytes:
                        return too_long(rules)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        return Refusal(
            status=408,
            code="body_too_slow",
            message=f"The body was not complete after {rules.body_patience_s:.0f} s. Send it in "
            "one go.",
        )


class _Answer:
    """The way back to the client: adds headers, and does not wait for one who does not read."""

    def __init__(
        self, send: Send, headers: list[tuple[bytes, bytes]], write_patience_s: float
    ) -> None:
        self._send = send
        self._headers = headers
        self._write_patience_s = write_patience_s

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            added = [header for header in self._headers if header[0] not in names]
            message = {**message, "headers": [*given, *added]}
        # A TimeoutError is an OSError, which is what a connection that broke raises.
        # asyncio's own: anyio's costs three times as much, and this is for every token.
        async with asyncio.timeout(self._write_patience_s):
            await self._send(message)

    async def refuse(self, refusal: Refusal, path: str) -> None:
        body = refusal.body(path)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def preflight(self, asked: Asked) -> None:
        headers = [
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-max-age", b"600"),
        ]
        # Whatever it wants to send: clients add headers of their own, and the page is trusted.
        for value in asked.all(b"access-control-request-headers"):
            headers += [(b"access-control-allow-headers", value.encode("latin-1"))]
        if asked.one(b"access-control-request-private-network") == "true":
            headers.append((b"access-control-allow-private-network", b"true"))
        await self({"type": "http.response.start", "status": 204, "headers": headers})
        await self({"type": "http.response.body", "body": b""})


def _headers(origin: str | None, rules: Rules) -> list[tuple[bytes, bytes]]:
    """What every answer carries; with leave to read it for an origin that was allowed by name."""
    headers = list(_ALWAYS)
    if rules.origins:
        headers.append((b"vary", b"Origin"))
        if origin is not None and origin.lower() in rules.origins:
            headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
            headers.append((b"access-control-expose-headers", b"retry-after, x-request-id"))
    return headers


def _inner_scope(scope: Scope, *, trusted: bool) -> Scope:
    """What the application sees: no credentials, but whether they were right."""
    kept = [(key, value) for key, value in scope["headers"] if key.lower() not in _CREDENTIALS]
    return {**scope, "headers": kept, "state": {**scope.get("state", {}), TRUSTED: trusted}}


def is_trusted(scope: Scope) -> bool:
    """Whether a request that was let in may be told everything; so it is where nobody guards."""
    return bool(scope.get("state", {}).get(TRUSTED, True))


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then what else there is: the client's going away."""
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed
