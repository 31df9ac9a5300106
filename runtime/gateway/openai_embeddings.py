"""OpenAI's embeddings: what is asked, and the answer.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime.gateway.dialect import Body, InvalidFieldError, keep_alive, parsed
from runtime.inference.usage import usage_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts import EmbeddingResult


class _Embeddings(Body):
    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    truncate: bool | None = None
    keep_alive: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts to embed.

    Attributes:
        model: The model that is named, or None.
        texts: The texts.
        base64: Whether vectors are wanted as base64 of little-endian floats of 32 bits.
        dimensions: How long the vectors are wanted, or None.
        truncate: Whether what is too long is cut instead of refused; not OpenAI's.
        keep_alive_s: As of a :class:`Call`.
    """

    model: str | None
    texts: tuple[str, ...]
    base64: bool
    dimensions: int | None
    truncate: bool
    keep_alive_s: float | None


def request(body: Mapping[str, object]) -> Texts:
    """What the body of ``POST /v1/embeddings`` asks for.

    Raises:
        LLMInvalidRequestError: It cannot be right.
    """
    asked = parsed(_Embeddings, body)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidFieldError(
            "input is neither a text nor a list of texts.",
            param="input",
            hint="Tokens of another model mean nothing to this one; send the texts "
            "(LangChain: check_embedding_ctx_length=False).",
        )
    return Texts(
        model=asked.model,
        texts=tuple(texts),
        base64=asked.encoding_format == "base64",
        dimensions=asked.dimensions,
        truncate=bool(asked.truncate),
        keep_alive_s=keep_alive(asked.keep_alive),
    )


def answer(made: EmbeddingResult, asked: Texts) -> dict[str, object]:
    """The body of the answer.

    Raises:
        InvalidFieldError: The vectors have another length than is wanted.
    """
    size = len(made.vectors[0]) if made.vectors else 0
    if asked.dimensions not in {None, size}:
        raise InvalidFieldError(
            f"dimensions is {asked.dimensions}; this model's vectors have {size}.",
            param="dimensions",
            hint="Leave it out.",
        )
    tokens = usage_of(made.usage).prompt_tokens
    return {
        "object": "list",
        "model": made.model_id,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if asked.base64 else list(vector),
            }
            for index, vector in enumerate(made.vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
