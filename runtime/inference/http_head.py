"""The heads of HTTP/1.1: a request's written, an answer's read.

Source: RFC 9112, sections 2 to 5, and 6.3 for what says how long a body is. h11 checks each field
of both twice and keeps a state of the connection; that is a quarter of a millisecond of each first
token, for connections that carry one request.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from runtime.inference.effects import BrokenError, HttpHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.inference.effects import HttpRequest

_LONGEST: Final = 64 * 1024

_TARGET: Final = re.compile(r"[!-~]+")
_VALUE: Final = re.compile(r"[\t -~]*")
_END: Final = re.compile(rb"\r?\n\r?\n")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*)")
_SWITCHING: Final = 101
_OK: Final = 200
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})


def written(request: HttpRequest, fields: Mapping[str, str]) -> bytes:
    """The head of a request.

    Args:
        request: Whose it is.
        fields: Its header fields, besides ``Host`` and ``Content-Length``.

    Raises:
        BrokenError: Something in it cannot be sent.
    """
    parts = urlsplit(request.base_url)
    fields = {"Host": parts.netloc, **fields}
    if request.body is not None:
        fields["Content-Length"] = str(len(request.body))
    target = parts.path + request.path
    # Neither a target nor a field may begin a line of its own, or a second request.
    if not _TARGET.fullmatch(target) or not all(map(_VALUE.fullmatch, fields.values())):
        raise BrokenError("the address or the key has characters that HTTP cannot carry")
    lines = [f"{request.method} {target} HTTP/1.1", *map(": ".join, fields.items()), "", ""]
    return "\r\n".join(lines).encode("ascii")


def read(data: bytes) -> tuple[HttpHead, bytes] | None:
    """The head of an answer, and the bytes after it; None when there is less than all of it.

    Those of answers that come before the last one (1xx) are skipped.

    Raises:
        BrokenError: It is none.
    """
    while (end := _END.search(data)) is not None:
        head = _head(data[: end.start()])
        data = data[end.end() :]
        if head.status >= _OK:
            return head, data
        if head.status == _SWITCHING:
            raise BrokenError("the server changes to a protocol that nobody asked for")
    if len(data) > _LONGEST:
        raise BrokenError("the head of the answer does not end")
    return None


def _head(data: bytes) -> HttpHead:
    first, *lines = data.split(b"\n")
    status = _STATUS.fullmatch(first.removesuffix(b"\r"))
    if status is None:
        raise BrokenError("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line.removesuffix(b"\r"))
        if field is None:
            raise BrokenError("a header field of the answer is malformed")
        name, value = field[1].decode("ascii").lower(), field[2].decode("latin-1").rstrip(" \t")
        if name in _FRAMING:
            value = _framing(name, value, headers)
        headers[name] = value
    return HttpHead(status=int(status[1]), headers=headers)


def _framing(name: str, value: str, before: Mapping[str, str]) -> str:
    """What says how long the body is: it may be said twice, but not in two ways."""
    value = value.lower()
    known = (
        value.isascii() and value.isdecimal() if name == "content-length" else value == "chunked"
    )
    if not known or before.get(name, value) != value:
        raise BrokenError(f"the server says {name}: {value[:50]}")
    return value
