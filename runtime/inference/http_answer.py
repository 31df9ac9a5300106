"""Reads an HTTP/1.1 answer, head and body, of whatever the connection brings of it.

The parser is llhttp, in C. What is spent here on a token of a streamed answer, which is a chunk and
mostly a packet, is taken from the engine, which shares the processor.
"""

from __future__ import annotations

from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from runtime.inference.effects import BrokenError, HttpHead

_MOST_IDLE_BYTES: Final = 16 * 1024
"""So many bytes may make neither a head nor a part of the body. The parser sets itself no limit: a
header line, the extensions of a chunk and the trailers may all go on forever."""


class HttpAnswer:
    """One answer: feed it what the connection brings.

    Attributes:
        head: Status and headers, once they have come; those of a 1xx answer are passed over.
        ended: Whether all of it has come.
    """

    __slots__ = ("_fields", "_idle_bytes", "_parser", "_pieces", "ended", "head", "on_body")

    def __init__(self) -> None:
        self.head: HttpHead | None = None
        self.ended = False
        self._fields: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._idle_bytes = 0
        self.on_body = self._pieces.append  # a token calls nothing of Python's
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)

    def feed(self, data: bytes) -> bytes:
        """What some bytes hold of the body; no bytes are the end of the connection.

        Raises:
            BrokenError: They are no answer, or the end comes before the answer's.
        """
        if self._parser is None:
            return b""
        if not data:
            self._cut_off()
            return b""
        self._idle_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as exc:
            raise BrokenError("the server answers in another protocol") from exc
        except HttpParserError as exc:
            if not self.ended:  # what follows the answer is nobody's
                raise BrokenError(str(exc)) from exc
        if self.ended:
            self.close()
        pieces = self._pieces
        if pieces:
            self._idle_bytes = 0
            if len(pieces) == 1:
                return pieces.pop()
            came = b"".join(pieces)
            pieces.clear()
            return came
        if self._idle_bytes > _MOST_IDLE_BYTES:
            raise BrokenError("the answer's head, or what frames its body, does not end")
        return b""

    def close(self) -> None:
        """Take no more: parser and answer hold each other, and would wait to be collected."""
        self._parser = None

    def _cut_off(self) -> None:
        if self.head is None:
            raise BrokenError("the connection was closed without an answer")
        if not self.head.headers.keys().isdisjoint(("content-length", "transfer-encoding")):
            raise BrokenError("peer closed connection without sending complete message body")
        self.ended = True
        self.close()

    # --- for the parser -----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer."""
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1").rstrip(" \t")

    def on_headers_complete(self) -> None:
        """A head has come; the next fields are of another, or trailers."""
        fields, self._fields = self._fields, {}
        assert self._parser is not None  # noqa: S101 - it calls
        status = self._parser.get_status_code()
        if self.head is None and status >= 200:
            self.head = HttpHead(status=status, headers=fields)
            self._idle_bytes = 0

    def on_message_complete(self) -> None:
        """The answer has ended, unless it was a 1xx one."""
        if self.head is not None:
            self.ended = True
            self._idle_bytes = 0
            self._pieces = self._pieces.copy()  # another answer's body goes to the one left behind
