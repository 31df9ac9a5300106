"""Content of messages: a string, or a list of parts with types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.gateway.dialect import InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping


def unfit(param: str, why: str, *, hint: str | None = None) -> InvalidFieldError:
    """The error for a field, whose place begins the message."""
    return InvalidFieldError(f"{param}: {why}", param=param, hint=hint)


def parts(content: object, *, at: str) -> list[Mapping[str, object]]:
    """Content as a list of parts; a string is one part of the type ``text``.

    Args:
        content: What was sent; None for nothing.
        at: Its place in the body.

    Raises:
        InvalidFieldError: It is neither a string nor a list of objects.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise unfit(at, "a string or a list of objects is expected.")
    for number, part in enumerate(content):
        if not isinstance(part, dict):
            raise unfit(f"{at}[{number}]", "an object is expected.")
    return content


def text_of(part: Mapping[str, object], *, at: str, field: str = "text") -> str:
    """The text of a part, which is in one of its fields.

    Raises:
        InvalidFieldError: It has none.
    """
    text = part.get(field)
    if not isinstance(text, str):
        raise unfit(f"{at}.{field}", "a string is expected.")
    return text
