"""GGUF files written byte by byte, right or wrong on purpose."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?"}
_CODES |= {U64: "Q", I64: "q", F64: "d"}

LLAMA: dict[str, tuple[int, Any]] = {
    "general.architecture": (STRING, "llama"),
    "general.name": (STRING, "Tiny"),
    "general.file_type": (U32, 1),
    "llama.block_count": (U32, 2),
    "llama.context_length": (U32, 4096),
    "llama.embedding_length": (U32, 64),
    "llama.feed_forward_length": (U32, 128),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (U32, 2),
    "llama.rope.freq_base": (F32, 10000.0),
    "tokenizer.ggml.model": (STRING, "gpt2"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "ü", ""])),
    "tokenizer.ggml.scores": (ARRAY, (F32, [0.5, 1.0, 2.0, 3.0])),
    "tokenizer.chat_template": (STRING, "{{ messages }}"),
}
"""Metadata of a complete little model: key → (type, value)."""


@dataclass
class TensorEntry:
    """A tensor as the file lists it; the offset follows from those before when it is None."""

    name: str
    shape: tuple[int, ...]
    kind: int = 1
    offset: int | None = None


TENSORS = (
    TensorEntry("token_embd.weight", (64, 4)),
    TensorEntry("blk.0.attn_q.weight", (64, 64)),
    TensorEntry("blk.0.attn_norm.weight", (64,), kind=0),
    TensorEntry("blk.1.attn_q.weight", (64, 64), kind=2),
    TensorEntry("output_norm.weight", (64,), kind=0),
)
_SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144)}


@dataclass
class GgufFile:
    """What is written; every part can be replaced."""

    values: dict[str, tuple[int, Any]] = field(default_factory=lambda: dict(LLAMA))
    tensors: tuple[TensorEntry, ...] = TENSORS
    order: Literal["little", "big"] = "little"
    version: int = 3
    magic: bytes = b"GGUF"
    tensor_count: int | None = None
    value_count: int | None = None
    alignment: int = 32
    with_data: bool = True

    def data(self) -> bytes:
        """The file."""
        head = bytearray(self.magic + self.pack("I", self.version))
        head += self.pack(
            "Q", len(self.tensors) if self.tensor_count is None else self.tensor_count
        )
        head += self.pack("Q", len(self.values) if self.value_count is None else self.value_count)
        for key, (kind, value) in self.values.items():
            head += self.string(key) + self.pack("I", kind) + self.value(kind, value)
        place = 0
        for tensor in self.tensors:
            head += self.string(tensor.name) + self.pack("I", len(tensor.shape))
            for extent in tensor.shape:
                head += self.pack("Q", extent)
            offset = place if tensor.offset is None else tensor.offset
            head += self.pack("I", tensor.kind) + self.pack("Q", offset % (1 << 64))
            place += -(-tensor_bytes(tensor) // self.alignment) * self.alignment
        if not self.with_data:
            return bytes(head)
        head += bytes(-len(head) % self.alignment)
        return bytes(head) + bytes(min(place, 1 << 20))

    def write(self, path: Path) -> Path:
        """Writes it and returns the path."""
        path.write_bytes(self.data())
        return path

    def value(self, kind: int, value: Any) -> bytes:
        """One value; a list is (type, items), a raw one is bytes."""
        if isinstance(value, bytes):
            return value
        if kind == STRING:
            return self.string(value)
        if kind == ARRAY:
            item_kind, items = value
            parts = [self.value(item_kind, item) for item in items]
            return self.pack("I", item_kind) + self.pack("Q", len(items)) + b"".join(parts)
        return self.pack(_CODES[kind], value)

    def string(self, text: str) -> bytes:
        """A text with its length."""
        data = text.encode()
        return self.pack("Q", len(data)) + data

    def pack(self, code: str, value: Any) -> bytes:
        """A number in this file's byte order."""
        return struct.pack(("<" if self.order == "little" else ">") + code, value)


def tensor_bytes(tensor: TensorEntry) -> int:
    """The size of its data; 0 for types that are not known."""
    elements = 1
    for extent in tensor.shape:
        elements *= extent
    block, size = _SIZES.get(tensor.kind, (1, 0))
    return elements // block * size


def changed(**values: tuple[int, Any] | None) -> dict[str, tuple[int, Any]]:
    """The little model's metadata with other values; names have ``__`` for a dot, None removes."""
    result = dict(LLAMA)
    for name, value in values.items():
        key = name.replace("__", ".")
        if value is None:
            del result[key]
        else:
            result[key] = value
    return result
