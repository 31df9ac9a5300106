"""What a prompt is put together from: words, files, a pipe."""

from __future__ import annotations

import codecs
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.errors import LLMInvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_BYTES: Final = 16_000_000
"""No context holds more; a file of that size is a mistake, and is not read."""

_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A text that goes with a prompt.

    Attributes:
        name: What it is called.
        text: The text.
    """

    name: str
    text: str


def read_file(path: Path) -> Attachment:
    """The text in a file.

    Raises:
        LLMInvalidRequestError: There is none, it is no text, or far too large.
    """
    try:
        if path.is_dir():
            raise LLMInvalidRequestError(
                f"{path} is a folder.", hint="Name the files in it, each with --file."
            )
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as exc:
        near = sorted(p.name for p in path.parent.glob(f"{path.stem[:3]}*"))[:3]
        raise LLMInvalidRequestError(
            f"There is no file {path}.",
            hint=f"There are: {', '.join(near)}." if near else "Check the path.",
        ) from exc
    except OSError as exc:
        raise LLMInvalidRequestError(
            f"Cannot read {path}: {exc.strerror or exc}.", hint="Check its permissions."
        ) from exc
    return Attachment(name=str(path), text=text_of(data, name=str(path)))


def read_stdin() -> str:
    """What is piped in.

    Raises:
        LLMInvalidRequestError: It is no text, or far too large.
    """
    return text_of(sys.stdin.buffer.read(MOST_BYTES + 1), name="stdin")


def text_of(data: bytes, *, name: str) -> str:
    """The text that the bytes are, be they UTF-8 or UTF-16 with its mark.

    Raises:
        LLMInvalidRequestError: They are no text, or far too many.
    """
    if len(data) > MOST_BYTES:
        raise LLMInvalidRequestError(
            f"{name} is larger than {MOST_BYTES // 1_000_000} MB: no model's context holds that.",
            hint="Give the part of it that matters.",
        )
    try:
        text = data.decode("utf-16" if data.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as exc:
        raise LLMInvalidRequestError(
            f"{name} is not text: byte {exc.start} is not UTF-8.",
            hint="Only text files can go into a prompt; convert it to UTF-8 text.",
        ) from exc
    if "\0" in text:
        raise LLMInvalidRequestError(
            f"{name} is not text: it holds zero bytes.",
            hint="Only text files can go into a prompt.",
        )
    return text


def joined(prompt: str | None, attachments: Sequence[Attachment], piped: str) -> str:
    """One prompt: the words, each file under its name, what was piped in."""
    parts = [prompt or "", *map(_quoted, attachments), piped.strip()]
    return "\n\n".join(part for part in parts if part)


def _quoted(attachment: Attachment) -> str:
    """A file as Markdown quotes one: between fences that are longer than any within."""
    longest = max((len(run) for run in re.findall(r"`{3,}", attachment.text)), default=2)
    fence = "`" * (longest + 1)
    text = attachment.text.rstrip("\n")
    return f"File {attachment.name}:\n{fence}\n{text}\n{fence}"
