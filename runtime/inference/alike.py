"""Tokens of a stream that differ in their text alone, read without reading JSON.

A llama.cpp server repeats some 200 bytes with each token. Reading them costs more than anything
else that is done with it, and what is spent on a token is taken from the engine, which shares the
processor.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXT: Final = re.compile(rb'"content": ?')
_INERT: Final = frozenset({"choices", "created", "id", "model", "object", "system_fingerprint"})
"""What a chunk may hold that says nothing new the next time."""

_READER: Final = json.JSONDecoder()  # strict: what holds a line break is no string to it
_CHOICE: Final = {"index": 0, "finish_reason": None, "logprobs": None}


class Alike:
    """What surrounds the text of one token; the packet of the next may have the same around it."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after

    @classmethod
    def of(cls, event: bytes, chunk: Mapping[str, Any]) -> Alike | None:
        """What surrounds the text in an event; None where the event tells anything besides it.

        Args:
            event: Its data.
            chunk: What that says.
        """
        match chunk["choices"]:
            case [{"delta": {"content": str(text), **more}, **choice}] if not more:
                inert = chunk.keys() <= _INERT and choice.items() <= _CHOICE.items()
            case _:
                inert = False
        if not inert:
            return None
        written = b'"%b"' % text.encode("utf-8", "surrogatepass")
        starts = [match.end() for match in _TEXT.finditer(event)]
        if len(starts) != 1 or not event.startswith(written, starts[0]):
            return None
        end = starts[0] + len(written)
        return cls(b"data: " + event[: starts[0]], event[end:] + b"\n\n")

    def text_of(self, packet: bytes) -> str | None:
        """The text of a packet that has the same around it; None for every other."""
        before, after = self._before, self._after
        if not (packet.startswith(before) and packet.endswith(after)):
            return None
        try:
            written = packet[len(before) : -len(after)].decode("utf-8", "surrogatepass")
            text, end = _READER.raw_decode(written)
        except ValueError:
            return None
        return text if isinstance(text, str) and text and end == len(written) else None
