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
from typing import TYPE_CHECKING, Final

from runtime.errors import ModelFormatError, ModelNotFoundError, StorageError
from runtime.store.gguf_foreign import describe_foreign
from runtime.store.gguf_types import (
    REMOVED_TENSOR_TYPES,
    TENSOR_TYPES,
    VALUE_FORMATS,
    ByteOrder,
    ValueType,
)
from runtime.store.gguf_window import Window

if TYPE_CHECKING:
    from pathlib import Path

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)

# What real files stay far below, so that a hostile one cannot make us work or remember for long.
_MAX_VALUES: Final = 16_384
_MAX_TENSORS: Final = 65_536
_MAX_ARRAY: Final = 1 << 30  # llama.cpp's own limit
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
    """

    path: Path
    status: os.stat_result
    version: int
    byte_order: ByteOrder
    values: dict[str, Value]
    array_lengths: dict[str, int]
    value_offsets: dict[str, int]
    tensors: tuple[Tensor, ...]


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
            raise ModelFormatError(
                f"{path} is {what}, not a GGUF model.",
                path=path,
                hint="Name the .gguf file itself.",
            )
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            return _Reader(Window(file, path, status.st_size)).contents(status)
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
    """Takes the parts of a GGUF file from a window in turn."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._kept = 0

    def contents(self, status: os.stat_result) -> GgufContents:
        window = self._window
        version, tensor_count, value_count = self._header()
        values: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        offsets: dict[str, int] = {}
        for _ in range(value_count):
            key = self._key(offsets)
            kind_offset = window.offset
            kind = window.read_u32()
            offsets[key] = window.offset
            value: Value | None
            if kind == ValueType.ARRAY:
                lengths[key], value = self._array(key)
            elif kind == ValueType.STRING:
                value = self._text(key)
            elif kind in window.fixed:
                fixed = window.fixed[kind]
                value = fixed.unpack(window.take(fixed.size))[0]
                self._keep(fixed.size)
            else:
                raise window.damaged(f"{key!r} has the unknown value type {kind}", kind_offset)
            if value is not None:
                values[key] = value
        tensors = self._tensors(tensor_count, self._alignment(values, offsets))
        return GgufContents(
            path=window.path,
            status=status,
            version=version,
            byte_order=window.order,
            values=values,
            array_lengths=lengths,
            value_offsets=offsets,
            tensors=tensors,
        )

    def _header(self) -> tuple[int, int, int]:
        window = self._window
        if window.size == 0:
            raise ModelFormatError(
                f"{window.path} is empty.", path=window.path, offset=0, hint="Fetch the file again."
            )
        head = window.peek(512)
        if not head.startswith(MAGIC):
            if MAGIC.startswith(head):
                raise window.cut_off(24, offset=window.size)
            raise describe_foreign(window.path, head)
        window.skip(len(MAGIC))
        version = window.read_u32()
        if version and version & 0xFFFF == 0:
            # Versions are small numbers: only the other byte order makes this of one.
            window.set_order("big")
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in _VERSIONS:
            newer = version > max(_VERSIONS)
            raise ModelFormatError(
                f"{window.path} is GGUF version {version}; versions 2 and 3 can be read.",
                path=window.path,
                offset=len(MAGIC),
                hint="Update this runtime." if newer else "Fetch a newer conversion of this model.",
            )
        tensor_count = self._count("tensors", 24, _MAX_TENSORS)
        value_count = self._count("metadata values", 13, _MAX_VALUES)
        return version, tensor_count, value_count

    def _count(self, what: str, least_bytes: int, limit: int) -> int:
        window = self._window
        offset = window.offset
        count = window.read_u64()
        if count > limit:
            raise window.damaged(f"it claims {count:,} {what}", offset)
        if count * least_bytes > window.size - window.offset:
            raise window.cut_off(window.offset + count * least_bytes, offset=offset)
        return count

    def _keep(self, size: int) -> None:
        self._kept += size
        if self._kept > _MAX_KEPT_BYTES:
            raise self._window.damaged(
                f"more than {_MAX_KEPT_BYTES >> 20} MiB of metadata outside its arrays",
                self._window.offset,
            )

    def _key(self, known: dict[str, int]) -> str:
        window = self._window
        offset = window.offset
        length = window.read_string_length()
        if not 0 < length <= 0xFFFF:
            raise window.damaged(f"a key of {length:,} bytes", offset)
        self._keep(length)
        key = window.take(length).decode("utf-8", "backslashreplace")
        if key in known:
            raise window.damaged(f"the key {key!r} appears twice", offset)
        return key

    def _text(self, key: str) -> str | None:
        window = self._window
        length = window.read_string_length()
        template = key == "tokenizer.chat_template"
        if length > (_MAX_KEPT_TEMPLATE if template else _MAX_KEPT_STRING):
            if template:
                raise window.damaged(f"a chat template of {length:,} bytes", window.offset)
            window.skip(length)
            return None
        self._keep(length)
        return window.take(length).decode("utf-8", "replace")

    def _array(self, key: str) -> tuple[int, Value | None]:
        window = self._window
        offset = window.offset
        kind = window.read_u32()
        length = window.read_u64()
        if length > _MAX_ARRAY:
            raise window.damaged(f"{key!r} is a list of {length:,}", offset)
        if kind == ValueType.STRING:
            window.skip_strings(length, key)
            return length, None
        if kind not in window.fixed:
            # llama.cpp reads no list of lists either.
            what = "lists" if kind == ValueType.ARRAY else f"the unknown value type {kind}"
            raise window.damaged(f"{key!r} is a list of {what}", offset)
        size = window.fixed[kind].size * length
        if length > _MAX_KEPT_ARRAY:
            window.skip(size)
            return length, None
        self._keep(size)
        mark = "<" if window.order == "little" else ">"
        return length, struct.unpack(f"{mark}{length}{VALUE_FORMATS[kind]}", window.take(size))

    def _alignment(self, values: dict[str, Value], offsets: dict[str, int]) -> int:
        alignment = values.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or isinstance(alignment, bool)
            or not 0 < alignment <= 1 << 20
            or alignment & (alignment - 1)
        ):
            raise self._window.damaged(
                f"general.alignment is {alignment!r}, no power of two",
                offsets["general.alignment"],
            )
        return alignment

    def _tensors(self, count: int, alignment: int) -> tuple[Tensor, ...]:
        window = self._window
        tensors: list[Tensor] = []
        names: set[str] = set()
        expected = end = 0
        for _ in range(count):
            place = window.offset
            tensor, offset = self._tensor()
            if tensor.name in names:
                raise window.damaged(f"the tensor {tensor.name!r} appears twice", place)
            if offset != expected:
                raise window.damaged(
                    f"the tensor {tensor.name!r} is said to begin at {offset:,} of the data, "
                    f"not at {expected:,}",
                    place,
                )
            names.add(tensor.name)
            tensors.append(tensor)
            end = offset + tensor.size_bytes
            expected = _padded(end, alignment)
        data_offset = _padded(window.offset, alignment)
        if count and data_offset + end > window.size:
            raise window.cut_off(data_offset + end, offset=window.size, at_least=False)
        return tuple(tensors)

    def _tensor(self) -> tuple[Tensor, int]:
        window = self._window
        place = window.offset
        length = window.read_string_length()
        if length > _MAX_TENSOR_NAME:
            raise window.damaged(f"a tensor name of {length:,} bytes", place)
        name = window.take(length).decode("utf-8", "backslashreplace")
        place = window.offset
        dimensions = window.read_u32()
        if dimensions > _MAX_DIMENSIONS:
            raise window.damaged(f"the tensor {name!r} has {dimensions:,} dimensions", place)
        shape = [window.read_u64() for _ in range(dimensions)]
        elements = 1
        for extent in shape:
            elements *= extent
            if extent > _MAX_SIGNED or elements > _MAX_SIGNED:
                raise window.damaged(f"the tensor {name!r} has the shape {tuple(shape)}", place)
        place = window.offset
        kind = window.read_u32()
        if kind not in TENSOR_TYPES:
            removed = REMOVED_TENSOR_TYPES.get(kind)
            raise window.damaged(
                f"the tensor {name!r} has the type {removed}, which llama.cpp no longer reads"
                if removed
                else f"the tensor {name!r} has the unknown type {kind}",
                place,
            )
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        row = shape[0] if shape else 1
        if row % block:
            raise window.damaged(
                f"the tensor {name!r} of type {type_name} has rows of {row:,}, "
                f"no multiple of {block}",
                place,
            )
        tensor = Tensor(
            name=name,
            type_name=type_name,
            elements=elements,
            rows=elements // row if row else 0,
            size_bytes=elements // block * block_bytes,
        )
        return tensor, window.read_u64()


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
