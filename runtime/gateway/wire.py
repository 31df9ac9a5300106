"""The gateway's end of a connection: uvicorn's on h11, with time limits where it has none.

uvicorn waits for ever for the rest of a request's head, and for a body that nobody reads any more
after its answer. Bodies that are still wanted are bounded by
:class:`runtime.gateway.security.Guard`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.gateway.connection import CorkedTransport
from runtime.gateway.http import WRITE_NOW

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

    from runtime.gateway.rules import Rules

PATIENCE_S = 10.0


class TimedProtocol(H11Protocol):
    """Closes connections whose request does not begin, or whose unwanted body does not end."""

    patience_s = PATIENCE_S
    _limit: asyncio.TimerHandle | None = None
    _corked: CorkedTransport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, and may not stay without saying what it wants."""
        self._corked = CorkedTransport(transport)
        super().connection_made(cast("asyncio.Transport", self._corked))
        self.app = partial(self._answer, self.app)
        self._arm()

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered by an application that may write pieces at once."""
        # HTTP/1.0 knows no chunks.
        now = partial(self._write_now, self.cycle) if scope["http_version"] == "1.1" else None
        extensions = {**(scope.get("extensions") or {}), WRITE_NOW: now}
        await app({**scope, "extensions": extensions}, receive, send)

    def _write_now(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """Write a chunk of a streamed answer, past uvicorn and h11, which keep no count of them."""
        if (
            cycle.disconnected
            or cycle.response_complete
            or not cycle.response_started
            or self.flow.write_paused
        ):
            return False
        self._corked.write_now(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer is written; the rest of the request, or half of the next, may be on its way."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._look()

    def _look(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()  # the application has it
        elif self.conn.their_state in {h11.IDLE, h11.SEND_BODY} and self._limit is None:
            self._arm()

    def _arm(self) -> None:
        self._limit = self.loop.call_later(self.patience_s, self._give_up)

    def _disarm(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _give_up(self) -> None:
        self._limit = None
        if not self.transport.is_closing():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP: as the rest of the API does, with the status that fits."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        remedy = "Send fewer or shorter headers." if status == 431 else "It must be HTTP/1.1."
        body = json.dumps(
            {
                "error": {
                    "message": f"{msg} {remedy}",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "headers_too_large" if status == 431 else "not_http",
                }
            }
        ).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def uvicorn_options(rules: Rules) -> dict[str, Any]:
    """Arguments for :class:`uvicorn.Config` that go with the rules."""
    return {
        "http": TimedProtocol,
        "ws": "none",
        "h11_max_incomplete_event_size": 2 * rules.max_header_bytes,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
    }
