"""Embedding vectors: batches out, unit vectors in."""

from __future__ import annotations

import base64
import json
import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from runtime.contracts import EmbeddingResult, Usage
from runtime.errors import LLMBadResponseError, LLMCapabilityError, LLMInvalidRequestError
from runtime.inference import failures
from runtime.inference.clock import Clock
from runtime.inference.effects import locate
from runtime.inference.flow import fetch, post
from runtime.inference.names import public_name
from runtime.inference.payload import LLAMA_CPP_KINDS, encode
from runtime.inference.stream import usage_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow, HttpRequest

BATCH_TEXTS: Final = 64
"""Most texts in one HTTP request."""

BATCH_CHARS: Final = 64 * 1024
"""Most characters in one HTTP request of more than one text."""

_PATH = "/v1/embeddings"


def checked(texts: object) -> list[str]:
    """The texts, if they can be embedded.

    Raises:
        LLMInvalidRequestError: There are none, one is empty, or it is no sequence of texts.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise LLMInvalidRequestError(
            f"texts is {type(texts).__name__}, not a list of texts.", hint="Pass [text]."
        )
    if not texts:
        raise LLMInvalidRequestError("texts is empty.", hint="Pass at least one text.")
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            what = "empty" if isinstance(text, str) else type(text).__name__
            raise LLMInvalidRequestError(
                f"texts[{position}] is {what}.", hint="Each text needs something to embed."
            )
    encode(texts)
    return list(texts)


def batches(texts: Sequence[str], most: int = BATCH_TEXTS) -> Iterator[list[str]]:
    """The texts in order, cut so that one HTTP request stays small."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == most or size + len(text) > BATCH_CHARS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def embed(texts: Sequence[str], limits: Limits, *, model: str | None) -> Flow[EmbeddingResult]:
    """Embed ``texts``, one HTTP request after another.

    Args:
        texts: Texts that :func:`checked` let pass.
        limits: Deadlines, which hold for each HTTP request.
        model: The model to name; None for the endpoint's own.
    """
    vectors: list[tuple[float, ...]] = []
    prompt_tokens: int | None = 0
    total_tokens: int | None = 0
    name: str | None = None
    endpoint = yield from locate(limits.request_timeout_s)
    # llama-cpp-python mixes up the texts of one request: the same text, twice in it, was seen to
    # get two vectors.
    most = 1 if endpoint.kind == "llama-cpp-python" else BATCH_TEXTS
    for batch in batches(texts, most):
        endpoint, parsed = yield from _batch(batch, limits, model)
        vectors += _vectors(parsed, len(batch))
        usage = usage_of(parsed["usage"] if isinstance(parsed.get("usage"), dict) else {})
        prompt_tokens = _sum(prompt_tokens, usage.prompt_tokens)
        total_tokens = _sum(total_tokens, usage.total_tokens)
        name = model or public_name(endpoint)
    if any(len(vector) != len(vectors[0]) for vector in vectors):
        raise _malformed("its vectors differ in length")
    return EmbeddingResult(
        vectors=tuple(vectors),
        model_id=name,
        usage=Usage(prompt_tokens=prompt_tokens, total_tokens=total_tokens),
    )


def _batch(
    texts: list[str], limits: Limits, model: str | None
) -> Flow[tuple[Endpoint, dict[str, Any]]]:
    def request(endpoint: Endpoint) -> HttpRequest:
        if endpoint.capabilities.embeddings is False:
            raise LLMCapabilityError(
                f"The server of the model {endpoint.model!r} serves no embeddings.",
                hint="Start it with embeddings=True, or give the client an embedding_model.",
            )
        body: dict[str, object] = {"model": model or endpoint.model, "input": texts}
        if endpoint.kind in LLAMA_CPP_KINDS:
            body["encoding_format"] = "base64"  # exact, and a fifth of the size
        return post(endpoint, _PATH, body)

    endpoint, head, body = yield from fetch(request, Clock(limits))
    if head.status != 200:
        raise failures.from_answer(head, body, model=model or endpoint.model)
    try:
        parsed = json.loads(body)
    except ValueError as exc:
        raise failures.not_a_completion(head, body) from exc
    if not isinstance(parsed, dict):
        raise failures.not_a_completion(head, body)
    return endpoint, parsed


def _vectors(parsed: Mapping[str, Any], count: int) -> list[tuple[float, ...]]:
    try:
        items = parsed["data"]
        found = {int(item.get("index", i)): item["embedding"] for i, item in enumerate(items)}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _malformed("it has no list of embeddings") from exc
    if sorted(found) != list(range(count)):
        raise _malformed(f"it holds {len(items)} vectors for {count} texts")
    return [_unit(_numbers(found[index])) for index in range(count)]


def _numbers(vector: object) -> Sequence[float]:
    try:
        if isinstance(vector, str):
            numbers = array("f", base64.b64decode(vector, validate=True))
            if sys.byteorder == "big":
                numbers.byteswap()
            return numbers
        if isinstance(vector, list) and vector and isinstance(vector[0], list):
            return _mean([_numbers(each) for each in vector])
        return [float(number) for number in vector]  # type: ignore[attr-defined]
    except (TypeError, ValueError) as exc:
        raise _malformed("a vector is not a list of numbers") from exc


def _mean(vectors: list[Sequence[float]]) -> Sequence[float]:
    """The mean of a text's token vectors: llama-cpp-python does not pool a chat model's."""
    if any(len(vector) != len(vectors[0]) for vector in vectors):
        raise ValueError
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def _unit(vector: Sequence[float]) -> tuple[float, ...]:
    """The vector with Euclidean length 1; as it came where the engine saw to that."""
    length = math.hypot(*vector)
    if not math.isfinite(length) or length == 0:
        raise _malformed("a vector has no direction")
    if abs(length - 1) < 1e-4:
        return tuple(vector)
    return tuple(number / length for number in vector)


def _sum(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left + right


def _malformed(why: str) -> LLMBadResponseError:
    return LLMBadResponseError(
        f"The server's embeddings are malformed: {why}.",
        hint="Is this model an embedding model, or the server started for embeddings?",
    )
