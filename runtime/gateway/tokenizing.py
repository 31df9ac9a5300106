"""Bodies of ``/tokenize`` and ``/detokenize``, as llama.cpp's server and vLLM take them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.gateway.dialect import Body, InvalidFieldError, keep_alive, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping


class _Tokenize(Body):
    content: str | None = None
    prompt: str | None = None
    model: str | None = None
    keep_alive: Any = None


class _Detokenize(Body):
    tokens: list[int]
    model: str | None = None
    keep_alive: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to be taken apart.

    Attributes:
        model: The model that is named, or None.
        text: The text.
        options: Further fields, for the engine.
        keep_alive_s: As of a :class:`Call`.
    """

    model: str | None
    text: str
    options: Mapping[str, object] = field(default_factory=dict)
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens to be put together; see :class:`Text`."""

    model: str | None
    tokens: tuple[int, ...]
    keep_alive_s: float | None = None


def text_of(body: Mapping[str, object]) -> Text:
    """What is to be tokenized.

    Raises:
        InvalidFieldError: There is no text.
    """
    asked = parsed(_Tokenize, body)
    text = asked.content if asked.content is not None else asked.prompt
    if text is None:
        raise InvalidFieldError(
            "content is missing.", param="content", hint="It is the text to tokenize."
        )
    return Text(
        model=asked.model,
        text=text,
        options=asked.others(),
        keep_alive_s=keep_alive(asked.keep_alive),
    )


def tokens_of(body: Mapping[str, object]) -> Tokens:
    """What is to be detokenized.

    Raises:
        InvalidFieldError: There are no tokens.
    """
    asked = parsed(_Detokenize, body)
    return Tokens(
        model=asked.model,
        tokens=tuple(asked.tokens),
        keep_alive_s=keep_alive(asked.keep_alive),
    )
