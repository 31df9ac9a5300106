"""From the bytes of a streamed answer to the data of its events.

Server-sent events by the WHATWG HTML standard, section 9.2.6 ("Interpreting an event stream"), cut
on bytes, so that a character split between two packets is never decoded in halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import LLMBadResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Longest single event that is accepted; a longer one is no answer of a language model."""


class SseDecoder:
    """Cuts a byte stream into the data of its events, however the bytes are packed."""

    __slots__ = ("_buffer", "_data", "_size")

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that ``chunk`` completes, in order.

        Raises:
            LLMBadResponseError: One event is longer than :data:`MAX_EVENT_BYTES`.
        """
        if self._is_one_event(chunk):
            return [chunk[6:-2]]
        text = self._buffer + chunk
        held = b""
        if b"\r" in text:
            if text.endswith(b"\r"):  # its "\n" may be in the next packet
                text, held = text[:-1], b"\r"
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = text.rfind(b"\n") + 1
        self._buffer = text[end:] + held
        events = [data for line in text[:end].split(b"\n")[:-1] for data in self._line(line)]
        if self._size + len(self._buffer) > MAX_EVENT_BYTES:
            raise LLMBadResponseError(
                f"The server sent an event of more than {MAX_EVENT_BYTES} bytes.",
                hint="Is this an OpenAI-compatible server?",
            )
        return events

    @property
    def amid_event(self) -> bool:
        """Whether a part of an event was fed whose rest was not."""
        return bool(self._buffer or self._data)

    def _is_one_event(self, chunk: bytes) -> bool:
        """Whether a packet is exactly one event of one line: nearly all of them are.

        What is spent on a token is taken from the engine, which shares the processor.
        """
        return (
            not self.amid_event
            and chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\n") == len(chunk) - 2
            and b"\r" not in chunk
        )

    def _line(self, line: bytes) -> Iterator[bytes]:
        if not line:
            if self._data:
                yield b"\n".join(self._data)
                self._data = []
                self._size = 0
            return
        name, _, value = line.partition(b":")
        # Comments have an empty name. Older llama-servers report a failure in a field "error".
        if name in {b"data", b"error"}:
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
