"""How many tokens texts to embed have, and their beginnings, by the engine's own tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMBadResponseError, TextTooLongError
from runtime.inference.counting import ask, count_of
from runtime.inference.payload import LLAMA_CPP_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow

MOST_SPECIAL: Final = 4
"""Tokens that a tokenizer may put around a text of its own accord; most put one or two."""

_REQUEST_BYTES: Final = 256 * 1024
# No vocabulary has this token, so it tells where one text ends and the next begins.
_BETWEEN: Final = -1


def can_count(endpoint: Endpoint) -> bool:
    """Whether a server tells how many tokens a text to embed has."""
    return endpoint.kind in LLAMA_CPP_KINDS or endpoint.kind == "llama-cpp-python"


def surely_fits(text: str, limit: int) -> bool:
    """Whether a text cannot have more than ``limit`` tokens: none is made of less than a byte."""
    return len(text) <= limit and len(text.encode()) + MOST_SPECIAL <= limit


def count_each(texts: Sequence[str], limits: Limits, endpoint: Endpoint) -> Flow[list[int]]:
    """Tokens of each text as it is embedded, those that are put around it included."""
    counts: list[int] = []
    if endpoint.kind not in LLAMA_CPP_KINDS:
        for text in texts:
            _, found = yield from ask("/extras/tokenize/count", {"input": text}, limits)
            counts.append(count_of(found or {}, "count"))
        return counts
    for part in _parts(texts):
        mixed: list[str | int] = [""]
        for text in part:
            mixed += (_BETWEEN, text)
        tokens = yield from _tokens(mixed, limits, special=True)
        special, *lengths = _lengths(tokens)
        if len(lengths) != len(part):
            raise _malformed()
        counts += [special + length for length in lengths]
    return counts


def beginning(text: str, most: int, limits: Limits) -> Flow[list[int]]:
    """The first tokens of a text, at most ``most``, with what belongs around them.

    For llama.cpp's server, which embeds tokens as well as texts.
    """
    whole = yield from _tokens(text, limits, special=True)
    plain = yield from _tokens(text, limits, special=False)
    around = len(whole) - len(plain)
    before = next(
        (n for n in range(around + 1) if whole[n : n + len(plain)] == plain), min(around, 1)
    )
    after = whole[before + len(plain) :]
    return whole[:before] + plain[: most - around] + after


def refuse(lengths: Mapping[int, int], limit: int) -> None:
    """Refuse texts that are too long.

    Args:
        lengths: Tokens of each text that may be too long, by its index.
        limit: Most tokens of one.

    Raises:
        TextTooLongError: At least one is.
    """
    too_long = {index: tokens for index, tokens in sorted(lengths.items()) if tokens > limit}
    if too_long:
        raise text_too_long(too_long, limit)


def text_too_long(too_long: Mapping[int, int | None], limit: int | None) -> TextTooLongError:
    """The error for texts that are too long, by index; None for what nobody told."""
    (first, tokens), *others = too_long.items()
    more = "" if not others else f" (and so are {_listed(index for index, _ in others)})"
    has = "is too long to be embedded" if tokens is None else f"has {tokens} tokens"
    may = "" if limit is None else f", but a text to embed may have {limit}"
    return TextTooLongError(
        f"texts[{first}] {has}{may}{more}.",
        too_long=too_long,
        limit=limit,
        hint="Split it, pass truncate=True to embed its beginning, raise batch_size and ctx_size, "
        "or use an embedding_model with a longer context.",
    )


def _listed(indices: Iterable[int]) -> str:
    shown = [str(index) for index in indices]
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")


def _parts(texts: Sequence[str]) -> Iterable[list[str]]:
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > _REQUEST_BYTES:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def _tokens(content: str | list[str | int], limits: Limits, *, special: bool) -> Flow[list[int]]:
    asked: dict[str, Any] = {"content": content, "add_special": special, "parse_special": True}
    _, found = yield from ask("/tokenize", asked, limits)
    tokens = (found or {}).get("tokens")
    if not isinstance(tokens, list):
        raise _malformed()
    return tokens


def _lengths(tokens: list[int]) -> list[int]:
    """How many tokens there are between the separators."""
    lengths = [0]
    for token in tokens:
        if token == _BETWEEN:
            lengths.append(0)
        else:
            lengths[-1] += 1
    return lengths


def _malformed() -> LLMBadResponseError:
    return LLMBadResponseError("The server's token count is malformed.")
