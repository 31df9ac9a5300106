"""What is typed into a chat, of one line or several: when it is complete, and what it means."""

from __future__ import annotations

import re
from typing import Final

_QUOTES: Final = '"""'
_COMMAND: Final = re.compile(r"/([A-Za-z?]+)(?:\s+(.*))?", re.DOTALL)


def is_open(text: str) -> bool:
    r"""Whether more is to come: the last line ends in a ``\``, or a ``\"\"\"`` has no partner."""
    if text.count(_QUOTES) % 2:
        return True
    backslashes = len(text) - len(text.rstrip("\\"))
    return backslashes % 2 == 1


def meant(text: str) -> str:
    r"""What was typed, without what only said that more was to come."""
    stripped = text.strip()
    if len(stripped) >= 2 * len(_QUOTES) and stripped.startswith(_QUOTES):
        inner = stripped[len(_QUOTES) :]
        if inner.endswith(_QUOTES) and inner.count(_QUOTES) == 1:
            return inner.removesuffix(_QUOTES).strip("\n")
    return re.sub(r"(?<!\\)\\(\n|$)", r"\1", text).strip()


def command(text: str) -> tuple[str, str] | None:
    """Name and argument of a ``/`` command; None for what is said to the model.

    ``//`` says a text that begins with a slash; a path such as ``/etc/hosts`` is no command.
    """
    match = _COMMAND.fullmatch(text)
    return (match[1].lower(), (match[2] or "").strip()) if match else None


def said(text: str) -> str:
    """A text for the model, without the second slash that kept it from being a command."""
    return text[1:] if text.startswith("//") else text
