"""Texts as the tokens of a model, and back.

Generators of effects (see :mod:`runtime.inference.effects`), shared by every client; no I/O here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import LLMBadResponseError, LLMCapabilityError
from runtime.inference.counting import ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow


def tokenize(text: str, options: Mapping[str, object], limits: Limits) -> Flow[list[object]]:
    """The tokens of a text.

    Args:
        text: The text.
        options: Further fields, as llama.cpp's server has them: ``add_special``,
            ``parse_special``, ``with_pieces``.
        limits: Deadlines.

    Raises:
        LLMCapabilityError: The server does not tell.
    """
    _, found = yield from ask("/tokenize", {**options, "content": text}, limits)
    if found is not None:
        return _tokens(found)
    if options.get("with_pieces"):
        raise LLMCapabilityError(
            "with_pieces: this server tells the numbers of tokens alone.",
            hint="Leave it out, or use the xllamacpp or llama-server engine.",
        )
    # llama-cpp-python's way, which always adds the token that begins a text, if there is one.
    _, found = yield from ask("/extras/tokenize", {"input": text}, limits)
    made = _tokens(_told(found))
    if options.get("add_special"):
        return made
    _, found = yield from ask("/extras/tokenize", {"input": ""}, limits)
    return made[len(_tokens(_told(found))) :]


def detokenize(tokens: Sequence[int], limits: Limits) -> Flow[str]:
    """The text that tokens stand for.

    Raises:
        LLMCapabilityError: The server does not tell.
    """
    _, found = yield from ask("/detokenize", {"tokens": list(tokens)}, limits)
    if found is None:
        _, found = yield from ask("/extras/detokenize", {"tokens": list(tokens)}, limits)
    told = _told(found)
    text = told.get("content", told.get("text"))
    if not isinstance(text, str):
        raise _malformed()
    return text


def _tokens(found: Mapping[str, object]) -> list[object]:
    tokens = found.get("tokens")
    if not isinstance(tokens, list):
        raise _malformed()
    return tokens


def _told(found: Mapping[str, object] | None) -> Mapping[str, object]:
    if found is None:
        raise LLMCapabilityError(
            "The server does not tell the tokens of a text.",
            hint="Use the xllamacpp or llama-server engine, which do.",
        )
    return found


def _malformed() -> LLMBadResponseError:
    return LLMBadResponseError("The server's answer about tokens is malformed.")
