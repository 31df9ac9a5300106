"""A GGUF file's header, metadata and tensor list, read with distrust.

The file is read through a small window, never mapped: a file that is truncated while it is read
then gives an error and not SIGBUS, and the memory used does not depend on the file. Every count and
length is checked against what the file can hold and against a limit before anything is built from
it. Long arrays (the vocabulary) are stepped over, only their length is kept.

Source of the layout: the GGUF specification (``docs/gguf.md`` of the ggml project); where it leaves
room, what llama.cpp's own reader (``ggml/src/gguf.cpp``) accepts.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from runtime.errors import ModelFormatError, ModelNotFoundError, StorageError
from runtime.store.gguf_foreign import describe_foreign
from runtime.store.gguf_types import (
    REMOVED_TENSOR_TYPES,
    TENSOR_TYPES,
    VALUE_FORMATS,
    ByteOrder,
    ValueType,
)

if TYPE_CHECKING:
    from pathlib import Path

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_WINDOW_BYTES: Final = 1 << 18

# What real files stay far below, so that a hostile one cannot make us work or remember for long.
_MAX_HEAD_BYTES: Final = 256 << 20  # all that stands before the tensor data
_MAX_VALUES: Final = 16_384
_MAX_TENSORS: Final = 65_536
_MAX_ARRAY: Final = 1 << 30  # llama.cpp's own limit
_MAX_STRINGS: Final = 4_194_304  # in all arrays together; the largest vocabularies have 0.3 million
_MAX_STRING_BYTES: Final = 1 << 30  # llama.cpp's own limit
_MAX_KEPT_BYTES: Final = 8 << 20
_MAX_KEPT_STRING: Final = 4096
_MAX_KEPT_TEMPLATE: Final = 4 << 20
_MAX_KEPT_ARRAY: Final = 1024  # per-layer values; llama.cpp allows 512 layers
_MAX_TENSOR_NAME: Final = 63  # GGML_MAX_NAME - 1
_MAX_DIMENSIONS: Final = 4
_MAX_SIGNED: Final = (1 << 63) - 1

Scalar = int | float | bool | str
Value = Scalar | tuple[int, ...] | tuple[float, ...] | tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as the file lists it.

    Attributes:
        name: Its name (``blk.0.attn_k.weight``).
        type_name: Its type (``Q4_K``).
        elements: How many numbers it holds.
        rows: Elements divided by the length of a row; 1 for a vector.
        size_bytes: Its data, without padding.
    """

    name: str
    type_name: str
    elements: int
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufContents:
    """What a GGUF file says before its tensor data begin.

    Attributes:
        path: The file.
        status: The system's facts about the file as it was read.
        version: GGUF version, 2 or 3.
        byte_order: How its numbers are written.
        values: Metadata by key; arrays only where they are short lists of numbers, and strings only
            up to a few kilobytes (the chat template: megabytes).
        array_lengths: Length of every array, by key.
        value_offsets: Where each value begins in the file.
        tensors: The tensors in file order.
        data_offset: Where tensor data begin.
    """

    path: Path
    status: os.stat_result
    version: int
    byte_order: ByteOrder
    values: dict[str, Value]
    array_lengths: dict[str, int]
    value_offsets: dict[str, int]
    tensors: tuple[Tensor, ...]
    data_offset: int


def read_contents(path: Path) -> GgufContents:
    """Header, metadata and tensor list of one GGUF file.

    Raises:
        ModelFormatError: It is no GGUF file, is damaged, or is shorter than its tensors need; with
            the byte at which that showed.
        ModelNotFoundError: There is no such file.
        StorageError: It cannot be read.
    """
    try:
        status = path.stat()  # before opening: opening a FIFO would wait for its writer
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ModelFormatError(f"{path} is {what}, not a GGUF model.", path=path)
        with path.open("rb", buffering=0) as file:
            return _Reader(file, path, os.fstat(file.fileno())).contents()
    except FileNotFoundError as exc:
        raise ModelNotFoundError(
            f"There is no file {path}.", reference=str(path), hint="Check the path."
        ) from exc
    except OSError as exc:
        raise StorageError(
            f"Cannot read {path}: {exc.strerror or exc}.",
            path=path,
            hint="Check the file's permissions and its disk.",
        ) from exc


class _Reader:
    """Reads forward through a file, a window at a time."""

    def __init__(self, file: BinaryIO, path: Path, status: os.stat_result) -> None:
        self._file = file
        self._path = path
        self._status = status
        self._size = status.st_size
        self._window = b""
        self._base = 0  # file offset of the window
        self._at = 0  # position in the window
        self._kept = 0
        self._strings = 0
        self._order: ByteOrder = "little"
        self._set_order("little")

    def _set_order(self, order: ByteOrder) -> None:
        mark = "<" if order == "little" else ">"
        self._order = order
        self._u32 = struct.Struct(mark + "I")
        self._u64 = struct.Struct(mark + "Q")
        self._fixed = {kind: struct.Struct(mark + code) for kind, code in VALUE_FORMATS.items()}

    # --- bytes ---------------------------------------------------------------------------------

    @property
    def _offset(self) -> int:
        return self._base + self._at

    def _damaged(self, what: str, offset: int) -> ModelFormatError:
        return ModelFormatError(
            f"{self._path} is damaged: {what} (at byte {offset:,}).",
            path=self._path,
            offset=offset,
            hint="Fetch the file again.",
        )

    def _cut_off(self, needed: int, *, offset: int, at_least: bool = True) -> ModelFormatError:
        return ModelFormatError(
            f"{self._path} is cut off: needs {'at least ' if at_least else ''}{needed:,} bytes, "
            f"has {self._size:,}.",
            path=self._path,
            offset=offset,
            hint="The download or copy was not complete: fetch the file again.",
        )

    def _check_reach(self, offset: int, count: int) -> None:
        if count > _MAX_STRING_BYTES:
            raise self._damaged(f"a value of {count:,} bytes", offset)
        if offset + count > self._size:
            raise self._cut_off(offset + count, offset=offset)
        if offset + count > _MAX_HEAD_BYTES:
            raise self._damaged(f"more than {_MAX_HEAD_BYTES >> 20} MiB of metadata", offset)

    def _need(self, count: int) -> None:
        """Makes ``count`` bytes available in the window."""
        if self._at + count <= len(self._window):
            return
        offset = self._offset
        self._check_reach(offset, count)
        self._file.seek(offset)
        parts = []
        missing = max(count, min(_WINDOW_BYTES, self._size - offset))
        while missing > 0:
            part = self._file.read(missing)
            if not part:  # it became shorter while being read
                raise self._cut_off(offset + count, offset=offset)
            parts.append(part)
            missing -= len(part)
        self._window = b"".join(parts)
        self._base = offset
        self._at = 0

    def _take(self, count: int) -> bytes:
        self._need(count)
        start = self._at
        self._at += count
        return self._window[start : self._at]

    def _skip(self, count: int) -> None:
        offset = self._offset
        self._check_reach(offset, count)
        if self._at + count <= len(self._window):
            self._at += count
        else:
            self._window = b""
            self._base = offset + count
            self._at = 0

    def _read_u32(self) -> int:
        value: int = self._u32.unpack(self._take(4))[0]
        return value

    def _read_u64(self) -> int:
        value: int = self._u64.unpack(self._take(8))[0]
        return value

    def _string_length(self) -> int:
        offset = self._offset
        length = self._read_u64()
        if length > _MAX_STRING_BYTES:
            raise self._damaged(f"a text of {length:,} bytes", offset)
        return length

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > _MAX_KEPT_BYTES:
            raise self._damaged(
                f"more than {_MAX_KEPT_BYTES >> 20} MiB of metadata outside its arrays",
                self._offset,
            )

    # --- parts ---------------------------------------------------------------------------------

    def contents(self) -> GgufContents:
        version, tensor_count, value_count = self._header()
        values: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        offsets: dict[str, int] = {}
        for _ in range(value_count):
            key = self._key(offsets)
            kind_offset = self._offset
            kind = self._read_u32()
            offsets[key] = self._offset
            if kind == ValueType.ARRAY:
                length, kept = self._array(key)
                lengths[key] = length
                if kept is not None:
                    values[key] = kept
            elif kind == ValueType.STRING:
                text = self._text(key)
                if text is not None:
                    values[key] = text
            elif kind in self._fixed:
                fixed = self._fixed[kind]
                values[key] = fixed.unpack(self._take(fixed.size))[0]
                self._keep(fixed.size)
            else:
                raise self._damaged(f"{key!r} has the unknown value type {kind}", kind_offset)
        tensors, data_offset = self._tensors(tensor_count, self._alignment(values, offsets))
        return GgufContents(
            path=self._path,
            status=self._status,
            version=version,
            byte_order=self._order,
            values=values,
            array_lengths=lengths,
            value_offsets=offsets,
            tensors=tensors,
            data_offset=data_offset,
        )

    def _header(self) -> tuple[int, int, int]:
        if self._size == 0:
            raise ModelFormatError(
                f"{self._path} is empty.", path=self._path, offset=0, hint="Fetch the file again."
            )
        self._need(min(self._size, 512))
        if not self._window.startswith(MAGIC):
            if MAGIC.startswith(self._window):
                raise self._cut_off(24, offset=self._size)
            raise describe_foreign(self._path, self._window[:512])
        self._at = len(MAGIC)
        version = self._read_u32()
        if version & 0xFFFF == 0 and version:
            # Versions are small numbers: only the other byte order makes this of one.
            self._set_order("big")
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in _VERSIONS:
            newer = version > max(_VERSIONS)
            raise ModelFormatError(
                f"{self._path} is GGUF version {version}; versions 2 and 3 can be read.",
                path=self._path,
                offset=len(MAGIC),
                hint="Update this runtime." if newer else "Fetch a newer conversion of this model.",
            )
        tensor_count = self._count("tensors", 24, _MAX_TENSORS)
        value_count = self._count("metadata values", 13, _MAX_VALUES)
        return version, tensor_count, value_count

    def _count(self, what: str, least_bytes: int, limit: int) -> int:
        offset = self._offset
        count = self._read_u64()
        if count > limit:
            raise self._damaged(f"it claims {count:,} {what}", offset)
        if count * least_bytes > self._size - self._offset:
            raise self._cut_off(self._offset + count * least_bytes, offset=offset)
        return count

    def _key(self, known: dict[str, int]) -> str:
        offset = self._offset
        length = self._string_length()
        if not 0 < length <= 0xFFFF:
            raise self._damaged(f"a key of {length:,} bytes", offset)
        self._keep(length)
        key = self._take(length).decode("utf-8", "backslashreplace")
        if key in known:
            raise self._damaged(f"the key {key!r} appears twice", offset)
        return key

    def _text(self, key: str) -> str | None:
        length = self._string_length()
        template = key == "tokenizer.chat_template"
        if length > (_MAX_KEPT_TEMPLATE if template else _MAX_KEPT_STRING):
            if template:
                raise self._damaged(f"a chat template of {length:,} bytes", self._offset)
            self._skip(length)
            return None
        self._keep(length)
        return self._take(length).decode("utf-8", "replace")

    def _array(self, key: str) -> tuple[int, Value | None]:
        offset = self._offset
        kind = self._read_u32()
        length = self._read_u64()
        if length > _MAX_ARRAY:
            raise self._damaged(f"{key!r} is a list of {length:,}", offset)
        if kind == ValueType.STRING:
            self._skip_strings(length, key)
            return length, None
        if kind not in self._fixed:
            what = "lists" if kind == ValueType.ARRAY else f"the unknown value type {kind}"
            raise self._damaged(f"{key!r} is a list of {what}", offset)
        size = self._fixed[kind].size * length
        if length > _MAX_KEPT_ARRAY:
            self._skip(size)
            return length, None
        self._keep(size)
        mark = "<" if self._order == "little" else ">"
        return length, struct.unpack(f"{mark}{length}{VALUE_FORMATS[kind]}", self._take(size))

    def _skip_strings(self, count: int, key: str) -> None:
        self._strings += count
        if self._strings > _MAX_STRINGS:
            raise self._damaged(f"{key!r} is a list of {count:,} texts", self._offset)
        if count * 8 > self._size - self._offset:
            raise self._cut_off(self._offset + count * 8, offset=self._offset)
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
            self._skip(at - self._at)

    def _alignment(self, values: dict[str, Value], offsets: dict[str, int]) -> int:
        alignment = values.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 0 < alignment <= 1 << 20
            or alignment & (alignment - 1)
        ):
            raise self._damaged(
                f"general.alignment is {alignment!r}, no power of two",
                offsets["general.alignment"],
            )
        return alignment

    def _tensors(self, count: int, alignment: int) -> tuple[tuple[Tensor, ...], int]:
        tensors: list[Tensor] = []
        names: set[str] = set()
        expected = end = 0
        for _ in range(count):
            place = self._offset
            tensor, offset = self._tensor()
            if tensor.name in names:
                raise self._damaged(f"the tensor {tensor.name!r} appears twice", place)
            if offset != expected:
                raise self._damaged(
                    f"the tensor {tensor.name!r} is said to begin at {offset:,} of the data, "
                    f"not at {expected:,}",
                    place,
                )
            names.add(tensor.name)
            tensors.append(tensor)
            end = offset + tensor.size_bytes
            expected = _padded(end, alignment)
        data_offset = _padded(self._offset, alignment)
        if count and data_offset + end > self._size:
            raise self._cut_off(data_offset + end, offset=self._size, at_least=False)
        return tuple(tensors), data_offset

    def _tensor(self) -> tuple[Tensor, int]:
        place = self._offset
        length = self._string_length()
        if length > _MAX_TENSOR_NAME:
            raise self._damaged(f"a tensor name of {length:,} bytes", place)
        name = self._take(length).decode("utf-8", "backslashreplace")
        place = self._offset
        dimensions = self._read_u32()
        if dimensions > _MAX_DIMENSIONS:
            raise self._damaged(f"the tensor {name!r} has {dimensions:,} dimensions", place)
        shape = [self._read_u64() for _ in range(dimensions)]
        elements = 1
        for extent in shape:
            elements *= extent
            if extent > _MAX_SIGNED or elements > _MAX_SIGNED:
                raise self._damaged(f"the tensor {name!r} has the shape {tuple(shape)}", place)
        place = self._offset
        kind = self._read_u32()
        if kind not in TENSOR_TYPES:
            removed = REMOVED_TENSOR_TYPES.get(kind)
            raise self._damaged(
                f"the tensor {name!r} has the type {removed}, which llama.cpp no longer reads"
                if removed
                else f"the tensor {name!r} has the unknown type {kind}",
                place,
            )
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        row = shape[0] if shape else 1
        if row % block:
            raise self._damaged(
                f"the tensor {name!r} of type {type_name} has rows of {row:,}, "
                f"no multiple of {block}",
                place,
            )
        return (
            Tensor(
                name=name,
                type_name=type_name,
                elements=elements,
                rows=elements // row if row else 0,
                size_bytes=elements // block * block_bytes,
            ),
            self._read_u64(),
        )


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
