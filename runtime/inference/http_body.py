"""Takes the framing off the body of an HTTP/1.1 answer, of whatever is there of it.

Source: RFC 9112, sections 6.3 (how long a body is) and 7.1 (chunks). h11 gives each chunk as an
event of its own and checks its state at each; a streamed answer is a chunk a token, and what is
spent on a token is taken from the engine, which shares the processor.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from runtime.inference.effects import BrokenError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_LINE: Final = 8 * 1024
"""Of a chunk's size with its extensions, or of a trailer field."""

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")
_NO_BODY: Final = frozenset({204, 304})


class Body:
    """The body of one answer: feed it what the connection brings.

    Attributes:
        ended: Whether all of it has come.
    """

    __slots__ = ("_after", "_chunked", "_left", "_rest", "_trailing", "ended")

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        """Nothing of it has come.

        Args:
            status: The status of the answer.
            headers: Its headers, names in lower case; those that say how long it is were checked.
        """
        coding = headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        self._chunked = coding == "chunked"
        self._left = int(length) if length is not None and not self._chunked else None
        if self._chunked:
            self._left = 0
        self._rest = b""
        self._after = self._trailing = False
        self.ended = (self._left == 0 and not self._chunked) or status in _NO_BODY

    def feed(self, data: bytes) -> bytes:
        """What some bytes hold of the body.

        Raises:
            BrokenError: They are not framed as they should be.
        """
        if self.ended:
            return b""
        if self._chunked:
            whole = self._one_chunk(data)
            if whole is not None:
                return whole
            return self._unchunked(self._rest + data if self._rest else data)
        if self._left is None:
            return data
        data = data[: self._left]
        self._left -= len(data)
        self.ended = not self._left
        return data

    def close(self) -> None:
        """The connection has ended.

        Raises:
            BrokenError: The body has not.
        """
        if not self.ended and self._left is not None:
            raise BrokenError("peer closed connection without sending complete message body")
        self.ended = True

    def _one_chunk(self, data: bytes) -> bytes | None:
        """What a packet holds that is exactly one chunk, as that of a token is."""
        if self._rest or self._left or self._after or self._trailing:
            return None
        size = _SIZE.match(data)
        start = size.end() if size else 0
        length = len(data) - start - 2
        if size and 0 < length == int(size[1], 16) and data.endswith(b"\r\n"):
            return data[start:-2]
        return None

    def _unchunked(self, data: bytes) -> bytes:
        at = 0
        pieces: list[bytes] = []
        while not self.ended:
            if self._left:
                pieces.append(data[at : at + self._left])
                at += len(pieces[-1])
                self._left -= len(pieces[-1])
                if self._left:
                    break
                self._after = True
            if self._after:
                if len(data) < at + 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise BrokenError("a chunk is longer than it says")
                at += 2
                self._after = False
            if self._trailing:
                end = data.find(b"\r\n", at)
                if end < 0:
                    self._check_line(data, at)
                    break
                self.ended = end == at
                at = end + 2
                continue
            size = _SIZE.match(data, at)
            if size is None:
                self._check_line(data, at)
                break
            at = size.end()
            self._left = int(size[1], 16)
            self._trailing = not self._left
        self._rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @staticmethod
    def _check_line(data: bytes, at: int) -> None:
        """Refuse a line that will never be a chunk's."""
        if b"\n" in data[at:] or len(data) - at > _LONGEST_LINE:
            raise BrokenError("a chunk does not say how long it is")
