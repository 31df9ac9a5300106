"""JSON that may be large, read and written so that other threads get their turn.

The accelerated reader and writer of :mod:`json` hold the interpreter's lock from beginning to end,
in a worker thread as well: half a second for 25 MB of short messages, in which an event loop passes
on no token. Here no step in C takes longer than one string, or a slice of a list, does.
"""

from __future__ import annotations

import json
from json import decoder, scanner
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SLICE: Final = 64
"""Items of a list that are written in one step."""

_SLICE_CHARS: Final = 1024 * 1024
"""Characters of a string that are."""

_DEPTH: Final = 3
"""As far into a request as the text of a message is."""


class _Reader(json.JSONDecoder):
    """Reads objects and lists in Python and strings in C, as :mod:`json` does where it must."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = decoder.JSONObject  # type: ignore[attr-defined]
        self.parse_array = decoder.JSONArray  # type: ignore[attr-defined]
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def read(data: bytes) -> Any:
    """What JSON says, as :func:`json.loads` has it.

    Long strings take the same time, short messages five times and numbers fifteen times as long.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    return _Reader().decode(data.decode(json.detect_encoding(data), "surrogatepass"))


def pieces(value: object, writer: json.JSONEncoder, depth: int = _DEPTH) -> Iterator[str]:
    """A value as the writer writes it; what is long in it, bit by bit.

    Args:
        value: What is written.
        writer: Says how.
        depth: How many containers within one another are looked into.
    """
    if not _is_long(value, depth):
        yield writer.encode(value)
    elif isinstance(value, str):
        yield '"'
        for start in range(0, len(value), _SLICE_CHARS):
            yield writer.encode(value[start : start + _SLICE_CHARS])[1:-1]
        yield '"'
    elif isinstance(value, dict):
        yield "{"
        for number, (key, each) in enumerate(value.items()):
            comma = writer.item_separator if number else ""
            yield f"{comma}{writer.encode({key: 0})[1:-2]}"
            yield from pieces(each, writer, depth - 1)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for start in range(0, len(value), _SLICE):
            if start:
                yield writer.item_separator
            items = value[start : start + _SLICE]
            if not _is_long(items, depth):
                yield writer.encode(items)[1:-1]
                continue
            for number, each in enumerate(items):
                if number:
                    yield writer.item_separator
                yield from pieces(each, writer, depth - 1)
        yield "]"


def _is_long(value: object, depth: int) -> bool:
    if isinstance(value, str):
        return len(value) > _SLICE_CHARS
    if isinstance(value, list | tuple):
        inner: Iterable[object] = value
        if len(value) > _SLICE:
            return True
    elif isinstance(value, dict):
        inner = value.values()
    else:
        return False
    return depth > 0 and any(_is_long(each, depth - 1) for each in inner)
