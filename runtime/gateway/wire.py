"""The gateway's end of a connection: uvicorn's on httptools, with limits where it has none.

uvicorn waits for ever for the rest of a request's head, and for a body that nobody reads any more
after its answer; and it keeps whatever comes, however much. So its parser is given a head once that
is whole, and nothing of a request before that in front of it is answered. Bodies that are still
wanted are bounded by :class:`runtime.gateway.security.Guard`.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from runtime.gateway.connection import CorkedTransport
from runtime.gateway.http import WRITE_NOW

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from runtime.gateway.rules import Rules

PATIENCE_S = 10.0

# httptools reads HTTP/0.9, HTTP/2.0 and RTSP too, takes the path of a whole URL whatever host that
# names, and takes what follows a CONNECT for another protocol.
_REQUEST_LINE: Final = re.compile(rb"(?!CONNECT )[A-Z-]+ /[!-~]* HTTP/1\.[01]\r\n")

# It takes the body of a request that would like an upgrade for that as well; and each first request
# of Java's client would.
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)

_UNTIL_ITS_END: Final = sys.maxsize


class TimedProtocol(HttpToolsProtocol):
    """Closes connections whose request does not begin, or whose unwanted body does not end.

    A head may be as long as uvicorn's ``h11_max_incomplete_event_size`` says, and so may what says
    where a body's chunks end and what comes behind them.
    """

    patience_s = PATIENCE_S
    _limit: asyncio.TimerHandle | None = None
    _corked: CorkedTransport
    _longest: int
    _unread = b""
    _left: int | None = 0
    """Bytes of a body that are still to come; None while its head is read."""
    _between = 0
    """Bytes of a body since the last that belonged to its content."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, and may not stay without saying what it wants."""
        self._corked = CorkedTransport(transport)
        self._longest = cast("int", self.config.h11_max_incomplete_event_size)
        super().connection_made(cast("asyncio.Transport", self._corked))
        self.app = partial(self._answer, self.app)
        self._arm()

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Have a request answered by an application that may write pieces at once."""
        if scope["http_version"] == "1.0":
            self.cycle.waiting_for_100_continue = False
            send = partial(self._send_unchunked, self.cycle, send)
        now = partial(self._write_now, self.cycle)
        extensions = {**(scope.get("extensions") or {}), WRITE_NOW: now}
        await app({**scope, "extensions": extensions}, receive, send)

    def _write_now(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        """Write a chunk of a streamed answer, past uvicorn, which keeps no count of them."""
        if (
            cycle.disconnected
            or cycle.response_complete
            or not cycle.chunked_encoding  # it has not begun, or holds no chunks
            or self.flow.write_paused
        ):
            return False
        self._corked.write_now(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    async def _send_unchunked(
        self, cycle: RequestResponseCycle, send: Send, message: Message
    ) -> None:
        """Send to HTTP/1.0, which knows no chunks, as uvicorn does not: past it."""
        cycle.chunked_encoding = False
        if message["type"] == "http.response.body" and cycle.scope["method"] != "HEAD":
            await self.flow.drain()
            if not cycle.disconnected:
                self.transport.write(message.get("body", b""))
            message = {**message, "body": b""}
        await send(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A piece of a request, or of several."""
        self._unset_keepalive_if_required()
        self._unread += data
        while self._unread and not self.transport.is_closing():
            if self._left:
                self._read_body(self._left)
            elif self._is_under_way():
                self.flow.pause_reading()
                break
            elif not self._read_head():
                break
        self._look()

    def _read_head(self) -> bool:
        """Hand on a head, which uvicorn takes in any length; False where none is to be had."""
        found = self._unread.find(b"\r\n\r\n")
        size = len(self._unread) if found < 0 else found + 4
        if size > self._longest:
            message = f"The head is longer than {self._longest} bytes."
            self._refuse(431, "headers_too_large", f"{message} Send fewer or shorter headers.")
        elif found >= 0 and _REQUEST_LINE.match(self._unread):
            head, self._unread = self._unread[:size], self._unread[size:]
            self._left = None
            super().data_received(_UPGRADE.sub(b"", head))
            return True
        elif found >= 0 or not self._unread[:1].isupper() or b"\n\n" in self._unread:
            self.send_400_response("Invalid HTTP request received.")
        return False

    def _read_body(self, left: int) -> None:
        """Hand on what is there of a body."""
        piece, self._unread = self._unread[:left], self._unread[left:]
        self._left = left - len(piece)
        self._between += len(piece)
        super().data_received(piece)
        if self._between > self._longest:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A head begins; or what follows the last chunk, whose end the parser alone knows."""
        if self._left is not None:
            raise HttpParserError  # of which uvicorn makes send_400_response()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is read."""
        left = 0
        # What stands behind a value is none of it (RFC 9110, 5.5), but llhttp leaves it there.
        self.headers[:] = [(name, value.rstrip(b" \t")) for name, value in self.headers]
        for name, value in self.headers:
            if name == b"content-length":
                left = int(value)  # there is one alone, and of digits
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise HttpParserError
                left = _UNTIL_ITS_END
        super().on_headers_complete()
        self._left, self._between = left, 0
        self.headers = []  # for trailers, which are none of the request's headers

    def on_body(self, body: bytes) -> None:
        """A piece of a body's content."""
        self._between = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is read."""
        self._left = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is written; the rest of the request, or the next, may be on its way."""
        super().on_response_complete()
        if self._unread or self._left:
            self.data_received(b"")

    def _is_under_way(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        if self._is_under_way():
            self._disarm()  # the application has it
        elif self._limit is None:
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
        """Answer what is no HTTP as the rest of the API does."""
        if self._is_under_way() and self._left == 0:
            self.cycle.keep_alive = False  # the next must come again, on another connection
        else:
            self._refuse(400, "not_http", f"{msg} It must be HTTP/1.1.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Close the connection, and say why if an answer was not begun in midst of a body."""
        error = {"type": "invalid_request_error", "param": None, "code": code, "message": message}
        body = json.dumps({"error": error}).encode()
        if not self._left or not self.cycle.response_started:
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: application/json\r\nconnection: close\r\n"
                + b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
        self.transport.close()


def uvicorn_options(rules: Rules) -> dict[str, Any]:
    """Arguments for :class:`uvicorn.Config` that go with the rules."""
    return {
        "http": TimedProtocol,
        "ws": "none",
        "h11_max_incomplete_event_size": 2 * rules.max_header_bytes,  # here not h11's
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
    }
