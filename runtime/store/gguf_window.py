"""Reading forward through a file that is not trusted: a window of it at a time, within limits."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, Final

from runtime.errors import ModelFormatError
from runtime.store.gguf_types import VALUE_FORMATS, ByteOrder

if TYPE_CHECKING:
    from pathlib import Path

WINDOW_BYTES: Final = 1 << 18
MAX_HEAD_BYTES: Final = 256 << 20  # all that stands before the tensor data
MAX_STRINGS: Final = 4_194_304  # in all arrays together; the largest vocabularies have 0.3 million
MAX_STRING_BYTES: Final = 1 << 30  # llama.cpp's own limit


class Window:
    """A place in a file that moves forward, and the numbers that stand there.

    Memory does not depend on the file: what is longer than the window is only made room for when it
    is taken whole, and whoever takes checks the length before.

    Attributes:
        path: The file.
        size: Its length in bytes.
        order: How its numbers are written.
        fixed: The parser of each value type of fixed size, by type.
    """

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._file = file
        self._window = b""
        self._base = 0  # file offset of the window
        self._at = 0  # position in the window
        self._strings = 0
        self.set_order("little")

    def set_order(self, order: ByteOrder) -> None:
        """Numbers from here on are written in this order."""
        mark = "<" if order == "little" else ">"
        self.order: ByteOrder = order
        self._u32 = struct.Struct(mark + "I")
        self._u64 = struct.Struct(mark + "Q")
        self.fixed = {kind: struct.Struct(mark + code) for kind, code in VALUE_FORMATS.items()}

    @property
    def offset(self) -> int:
        """The place in the file, in bytes from its beginning."""
        return self._base + self._at

    def damaged(self, what: str, offset: int) -> ModelFormatError:
        """The error for a file that is wrong at ``offset``."""
        return ModelFormatError(
            f"{self.path} is damaged: {what} (at byte {offset:,}).",
            path=self.path,
            offset=offset,
            hint="Fetch the file again.",
        )

    def cut_off(self, needed: int, *, offset: int, at_least: bool = True) -> ModelFormatError:
        """The error for a file that would have to be ``needed`` bytes long."""
        return ModelFormatError(
            f"{self.path} is cut off: needs {'at least ' if at_least else ''}{needed:,} bytes, "
            f"has {self.size:,}.",
            path=self.path,
            offset=offset,
            hint="The download or copy was not complete: fetch the file again.",
        )

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            ModelFormatError: The file ends before.
        """
        self._need(count)
        start = self._at
        self._at += count
        return self._window[start : self._at]

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, or what the file has of them, without moving on."""
        self._need(min(count, self.size - self.offset))
        return self._window[self._at : self._at + count]

    def skip(self, count: int) -> None:
        """Moves on without reading.

        Raises:
            ModelFormatError: The file ends before.
        """
        self._check_reach(count)
        if self._at + count <= len(self._window):
            self._at += count
        else:
            self._base = self.offset + count
            self._window = b""
            self._at = 0

    def read_u32(self) -> int:
        """The next four bytes as a number."""
        value: int = self._u32.unpack(self.take(4))[0]
        return value

    def read_u64(self) -> int:
        """The next eight bytes as a number."""
        value: int = self._u64.unpack(self.take(8))[0]
        return value

    def read_string_length(self) -> int:
        """How many bytes of text follow."""
        offset = self.offset
        length = self.read_u64()
        if length > MAX_STRING_BYTES:
            raise self.damaged(f"a text of {length:,} bytes", offset)
        return length

    def skip_strings(self, count: int, key: str) -> None:
        """Moves past ``count`` texts, of which there may be hundreds of thousands.

        Raises:
            ModelFormatError: The file ends before, or there are too many.
        """
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise self.damaged(f"{key!r} is a list of {count:,} texts", self.offset)
        if count * 8 > self.size - self.offset:
            raise self.cut_off(self.offset + count * 8, offset=self.offset)
        unpack = self._u64.unpack_from
        while count:
            self._need(8)
            window, at = self._window, self._at
            last = len(window) - 8
            done = 0
            for done in range(count):  # noqa: B007 - the hot loop: 0.1 µs for each text
                if at > last:
                    break
                at += 8 + unpack(window, at)[0]
            else:
                done = count
            count -= done
            # The last text may end beyond the window, or beyond the file when its length is a lie.
            self.skip(at - self._at)

    def _check_reach(self, count: int) -> None:
        end = self.offset + count
        if count > MAX_STRING_BYTES:
            raise self.damaged(f"a value of {count:,} bytes", self.offset)
        if end > self.size:
            raise self.cut_off(end, offset=self.offset)
        if end > MAX_HEAD_BYTES:
            raise self.damaged(f"more than {MAX_HEAD_BYTES >> 20} MiB of metadata", self.offset)

    def _need(self, count: int) -> None:
        """Makes ``count`` bytes available in the window."""
        if self._at + count <= len(self._window):
            return
        self._check_reach(count)
        offset = self.offset
        self._file.seek(offset)
        parts = []
        missing = max(count, min(WINDOW_BYTES, self.size - offset))
        while missing > 0:
            part = self._file.read(missing)
            if not part:  # it became shorter while being read
                raise self.cut_off(offset + count, offset=offset)
            parts.append(part)
            missing -= len(part)
        self._window = b"".join(parts)
        self._base = offset
        self._at = 0
