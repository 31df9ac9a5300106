"""Embedding vectors: batches out, unit vectors in."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime.contracts import EmbeddingResult, Usage
from runtime.errors import (
    ContextOverflowError,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMInvalidRequestError,
)
from runtime.inference import failures, text_lengths
from runtime.inference.clock import Clock
from runtime.inference.effects import locate
from runtime.inference.exchange import fetch, post
from runtime.inference.names import public_name
from runtime.inference.payload import LLAMA_CPP_KINDS
from runtime.inference.queueing import take_place
from runtime.inference.usage import usage_of
from runtime.inference.vectors import VectorBuilder
from runtime.inference.wishes import encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow, HttpRequest

BATCH_TEXTS: Final = 64
"""Most texts in one HTTP request."""

BATCH_TOKENS: Final = 4096
"""Most tokens in one HTTP request of more than one text: what others ask of the engine meanwhile
waits for no more than that."""

_PATH = "/v1/embeddings"
_TOKEN_BYTES: Final = 3  # of a text whose tokens were not counted; most have more


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedText:
    """A text of which only the beginning was embedded.

    Attributes:
        index: Its place in the list.
        tokens: How many tokens it has; None where the server did not say.
        kept: How many of them were embedded.
    """

    index: int
    tokens: int | None
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedEmbeddingResult(EmbeddingResult):
    """What :meth:`runtime.LlamaClient.embed` returns with ``truncate=True``.

    Attributes:
        truncated: The texts that were too long, in order; empty when none was.
    """

    truncated: tuple[TruncatedText, ...] = ()


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
        encode(text)
    return list(texts)


def embed(
    texts: Sequence[str], limits: Limits, *, model: str | None, truncate: bool = False
) -> Flow[EmbeddingResult]:
    """Embed ``texts``, one HTTP request after another.

    Args:
        texts: Texts that :func:`checked` let pass.
        limits: Deadlines, which hold for each HTTP request.
        model: The model to name; None for the endpoint's own.
        truncate: Embed the beginning of what is too long, instead of refusing it. The result is
            then a :class:`TruncatedEmbeddingResult`.
    """
    endpoint = yield from locate(limits.request_timeout_s)
    work = _Work(texts, limits, model, endpoint, truncate=truncate)
    yield from work.look_at_lengths()
    while work.done < len(texts):
        yield from work.step()
    return work.result()


class _Work:
    """Texts on their way to vectors."""

    def __init__(
        self,
        texts: Sequence[str],
        limits: Limits,
        model: str | None,
        endpoint: Endpoint,
        *,
        truncate: bool,
    ) -> None:
        self._texts = texts
        self._limits = limits
        self._model = model
        self._endpoint = endpoint
        self._truncate = truncate
        self._limit = _limit(endpoint)
        # llama-cpp-python mixes up the texts of one request: the same text, twice in it, was seen
        # to get two vectors.
        self._most = 1 if endpoint.kind == "llama-cpp-python" else BATCH_TEXTS
        self._lengths: dict[int, int] = {}
        self._truncated: list[TruncatedText] = []
        self._vectors = VectorBuilder(len(texts))
        self._prompt_tokens: int | None = 0
        self._total_tokens: int | None = 0
        self._begun = False
        self.done = 0

    def look_at_lengths(self) -> Flow[None]:
        """Count the tokens of what may be too long, before anything is computed.

        Raises:
            TextTooLongError: It is, and is not to be truncated.
        """
        limit = self._limit
        if limit is None or not text_lengths.can_count(self._endpoint):
            return
        waiting = range(self.done, len(self._texts))
        doubtful = [n for n in waiting if not text_lengths.surely_fits(self._texts[n], limit)]
        counts = yield from text_lengths.count_each(
            [self._texts[n] for n in doubtful], self._limits, self._endpoint
        )
        self._lengths = dict(zip(doubtful, counts, strict=True))
        if not self._truncate:
            text_lengths.refuse(self._lengths, limit)

    def step(self) -> Flow[None]:
        """Embed as many texts as one request holds."""
        batch = self._batch()
        sent: list[str | list[int]] = list(self._texts[batch.start : batch.stop])
        for index in filter(self._too_long, batch):
            sent[index - batch.start] = yield from self._beginning(index)
        try:
            parsed = yield from self._ask(sent)
        except ContextOverflowError as exc:
            yield from self._learn(exc, batch)
            return
        for vector in _vectors(parsed, len(batch)):
            try:
                self._vectors.add(vector)
            except ValueError as exc:
                raise _malformed(str(exc)) from None
        usage = usage_of(parsed.get("usage"))
        self._prompt_tokens = _sum(self._prompt_tokens, usage.prompt_tokens)
        self._total_tokens = _sum(self._total_tokens, usage.total_tokens)
        if self._limit is not None:
            self._truncated += [
                TruncatedText(index=n, tokens=self._lengths[n], kept=self._limit)
                for n in batch
                if self._too_long(n)
            ]
        self.done = batch.stop

    def result(self) -> EmbeddingResult:
        """What came of all of them."""
        plain = EmbeddingResult(
            vectors=self._vectors.built(),
            model_id=self._model or public_name(self._endpoint),
            usage=Usage(prompt_tokens=self._prompt_tokens, total_tokens=self._total_tokens),
        )
        if not self._truncate:
            return plain
        return TruncatedEmbeddingResult(
            vectors=plain.vectors,
            model_id=plain.model_id,
            usage=plain.usage,
            truncated=tuple(self._truncated),
        )

    def _batch(self) -> range:
        """The next texts: few enough, and together short enough."""
        end, size = self.done, 0
        while end < len(self._texts) and end - self.done < self._most:
            size += self._lengths.get(end) or len(self._texts[end].encode()) // _TOKEN_BYTES + 1
            if size > BATCH_TOKENS and end > self.done:
                break
            end += 1
        return range(self.done, end)

    def _too_long(self, index: int) -> bool:
        return self._limit is not None and self._lengths.get(index, 0) > self._limit

    def _beginning(self, index: int) -> Flow[str | list[int]]:
        """As many tokens of a text as can be embedded."""
        text = self._texts[index]
        if self._limit is None or self._endpoint.kind not in LLAMA_CPP_KINDS:
            return text  # llama-cpp-python truncates to its batch by itself, and says nothing
        return (yield from text_lengths.beginning(text, self._limit, self._limits))

    def _learn(self, exc: ContextOverflowError, batch: range) -> Flow[None]:
        """Go on after the server found a text too long that was not known to be.

        Raises:
            TextTooLongError: There is no way to.
            LLMCapabilityError: Texts of this server cannot be truncated.
        """
        limit = exc.context_tokens
        countable = text_lengths.can_count(self._endpoint)
        if countable and limit is not None and (self._limit is None or limit < self._limit):
            self._limit = limit
            yield from self.look_at_lengths()
        elif len(batch) > 1:
            self._most = 1  # to see which it is
        elif self._truncate and not countable:
            raise LLMCapabilityError(
                f"texts[{batch.start}] is too long, and this server cannot truncate it.",
                hint="Shorten it, or use the xllamacpp or llama-server engine.",
            ) from exc
        else:
            too_long = {batch.start: exc.prompt_tokens}
            raise text_lengths.text_too_long(too_long, limit) from exc

    def _ask(self, inputs: Sequence[str | list[int]]) -> Flow[dict[str, Any]]:
        model = self._model

        def request(endpoint: Endpoint) -> HttpRequest:
            if endpoint.capabilities.embeddings is False:
                raise LLMCapabilityError(
                    f"The server of the model {endpoint.model!r} serves no embeddings.",
                    hint="Start it with embeddings=True, or give the client an embedding_model.",
                )
            body: dict[str, object] = {"model": model or endpoint.model, "input": inputs}
            if endpoint.kind in LLAMA_CPP_KINDS:
                body["encoding_format"] = "base64"  # exact, and a fifth of the size
            return post(endpoint, _PATH, body)

        clock = Clock(self._limits)
        # Each request lines up anew, so that many texts let others in between; what has begun is
        # not refused any more.
        yield from take_place(clock.until("total"), bounded=not self._begun)
        self._begun = True
        doing = f"it had embedded {self.done:,} of {len(self._texts):,} texts"
        endpoint, head, body = yield from fetch(request, clock, doing=doing)
        if head.status != 200:
            raise failures.from_answer(head, body, model=model or endpoint.model)
        try:
            parsed = json.loads(body)
        except ValueError as exc:
            raise failures.not_a_completion(head, body) from exc
        if not isinstance(parsed, dict):
            raise failures.not_a_completion(head, body)
        return parsed


def _limit(endpoint: Endpoint) -> int | None:
    """Most tokens of one text; None where only the server knows."""
    if endpoint.batch_tokens is None:
        return None
    return min(endpoint.batch_tokens, endpoint.context_tokens or endpoint.batch_tokens)


def _vectors(parsed: Mapping[str, Any], count: int) -> Iterable[Sequence[float]]:
    try:
        items = parsed["data"]
        found = {int(item.get("index", i)): item["embedding"] for i, item in enumerate(items)}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _malformed("it has no list of embeddings") from exc
    if sorted(found) != list(range(count)):
        raise _malformed(f"it holds {len(items)} vectors for {count} texts")
    return (_numbers(found[index]) for index in range(count))


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


def _sum(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left + right


def _malformed(why: str) -> LLMBadResponseError:
    return LLMBadResponseError(
        f"The server's embeddings are malformed: {why}.",
        hint="Is this model an embedding model, or the server started for embeddings?",
    )
