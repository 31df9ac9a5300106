"""Naming a file that is not GGUF by its first bytes, so that the error says what it is instead."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from runtime.errors import ModelFormatError

if TYPE_CHECKING:
    from pathlib import Path

_REFETCH: Final = "Fetch the file again, and check the address it comes from."
_SIGNATURES: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"FUGG", "a GGUF file whose bytes are swapped", _REFETCH),
    (b"lmgg", "a GGML file, the format before GGUF", "Fetch the GGUF version of this model."),
    (b"fmgg", "a GGMF file, the format before GGUF", "Fetch the GGUF version of this model."),
    (b"tjgg", "a GGJT file, the format before GGUF", "Fetch the GGUF version of this model."),
    (b"algg", "a GGLA adapter, the format before GGUF", "Fetch the GGUF version of this adapter."),
    (b"PK\x03\x04", "a zip archive (perhaps a PyTorch model)", "Fetch the GGUF version instead."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it first."),
    (b"\xfd7zXZ", "an xz archive", "Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (b"\x89HDF", "an HDF5 file", "Fetch the GGUF version of this model."),
    (b"%PDF", "a PDF document", _REFETCH),
    (b"\x7fELF", "a program", "Name the model file, not the engine."),
)


def describe_foreign(path: Path, head: bytes) -> ModelFormatError:
    """The error for a file that begins with ``head`` and is no GGUF."""
    what, hint = _recognise(head)
    return ModelFormatError(f"{path} is {what}, no GGUF model.", path=path, offset=0, hint=hint)


def _recognise(head: bytes) -> tuple[str, str]:
    for signature, what, hint in _SIGNATURES:
        if head.startswith(signature):
            return what, hint
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "a safetensors file", "Fetch the GGUF version of this model."
    if not any(head):
        return "full of zero bytes", "The download was not complete: fetch the file again."
    text = _as_text(head)
    if text is None:
        return "binary data of an unknown kind", _REFETCH
    return _recognise_text(text)


def _recognise_text(text: str) -> tuple[str, str]:
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith("version https://git-lfs"):
        return (
            "a Git LFS pointer, which only stands for the model",
            "Run `git lfs pull` in its folder, or fetch the file from the hub.",
        )
    if start.startswith(("<!doctype html", "<head", "<body")) or "<html" in start:
        return "an HTML page", "The address led to a web page: use the link of the file itself."
    if start.startswith("<"):
        return "an XML document", _REFETCH
    if start.startswith(("{", "[")):
        return "a JSON text" + _json_error(text), _REFETCH
    return "a text file", _REFETCH


def _as_text(head: bytes) -> str | None:
    """``head`` as text, or None when it is not text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as exc:
        if exc.start < len(head) - 4:  # otherwise only the last character is cut in two
            return None
        text = head[: exc.start].decode("utf-8")
    if any(character < " " and character not in "\t\r\n\f\x1b" for character in text):
        return None
    return text


def _json_error(text: str) -> str:
    """What a JSON error answer says, in brackets, or nothing."""
    try:
        body = json.loads(text)
    except ValueError:
        return ""
    message = body.get("error") if isinstance(body, dict) else None
    return f" that says {message!r}" if isinstance(message, str) else ""
