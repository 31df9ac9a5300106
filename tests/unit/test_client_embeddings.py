"""Embeddings in every form that servers answer with, with no network."""

from __future__ import annotations

import base64
import math
import pickle
from array import array
from typing import Any

import pytest

from runtime.contracts import EmbeddingResult, Usage
from runtime.errors import (
    ContextOverflowError,
    LLMBadResponseError,
    LLMCapabilityError,
    TextTooLongError,
)
from runtime.inference.clock import Limits
from runtime.inference.embeddings import TruncatedEmbeddingResult, TruncatedText, embed
from runtime.inference.vectors import Vectors
from tests.unit.some_server import endpoint, performed

PAIR = [[3.0, 4.0], [0.0, -2.0]]


def embedded(
    answer: Any, *, status: int = 200, kind: str = "xllamacpp", known: bool | None = None
) -> EmbeddingResult:
    """What two texts become when the server answers this."""
    at = endpoint(kind, model="m~0123456789ab", embeddings=known)
    return performed(embed(["a", "b"], Limits(), model=None), at, lambda *_: (status, answer))


def data(*vectors: Any, **more: Any) -> dict[str, Any]:
    items = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return {"data": items, **more}


def in_base64(numbers: list[float]) -> str:
    return base64.b64encode(array("f", numbers)).decode()


@pytest.mark.parametrize(
    "answer",
    [
        data(*PAIR),
        {"data": data(*PAIR)["data"][::-1]},
        {"data": [{"embedding": vector} for vector in PAIR]},
        data(*map(in_base64, PAIR)),
        data([[1.0, 2.0], [5.0, 6.0]], [[0.0, -2.0]]),  # one vector a token, as of a chat model
    ],
)
def test_every_form_becomes_unit_vectors_in_order(answer: dict[str, Any]) -> None:
    result = embedded(answer)
    assert [tuple(round(x, 6) for x in vector) for vector in result.vectors] == [
        (0.6, 0.8),
        (0.0, -1.0),
    ]
    assert result.model_id == "m"  # the instance's nonce is nobody's business


def test_llama_cpp_python_is_asked_for_one_text_at_a_time() -> None:
    """It mixes up the texts of one request."""
    with pytest.raises(LLMBadResponseError, match="2 vectors for 1 texts"):
        embedded(data(*PAIR), kind="llama-cpp-python")


def test_vectors_of_unit_length_are_left_as_they_came() -> None:
    first, second = array("f", [0.6, 0.8]), array("f", [math.sqrt(0.5), math.sqrt(0.5) + 1e-5])
    assert embedded(data(list(first), list(second))).vectors == (tuple(first), tuple(second))


def test_tokens_are_counted_where_the_server_tells() -> None:
    told = {"usage": {"prompt_tokens": 3, "total_tokens": 3}}
    assert embedded(data(*PAIR, **told)).usage == Usage(prompt_tokens=3, total_tokens=3)
    assert embedded(data(*PAIR)).usage == Usage()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"[]",
        {},
        {"data": None},
        {"data": [3]},
        data(PAIR[0]),
        data(*PAIR, PAIR[0]),
        {"data": [{"index": 0, "embedding": PAIR[0]}] * 2},
        data([1.0], [1.0, 2.0]),
        data([1.0], []),
        data([1.0], [0.0]),
        data([1.0], [math.nan]),
        data([1.0], ["x"]),
        data([1.0], None),
        data([1.0], "%%%"),
        data([1.0], "AAA="),
        data([1.0], [[1.0], [1.0, 2.0]]),
    ],
)
def test_what_is_no_list_of_vectors_is_a_bad_response(answer: Any) -> None:
    with pytest.raises(LLMBadResponseError):
        embedded(answer)


def test_a_server_without_embeddings_is_a_missing_capability() -> None:
    with pytest.raises(LLMCapabilityError, match="serves no embeddings"):
        embedded({}, known=False)
    message = "This server does not support embeddings. Start it with `--embeddings`"
    refusal = {"error": {"code": 501, "message": message, "type": "not_supported_error"}}
    with pytest.raises(LLMCapabilityError, match="does not support"):
        embedded(refusal, status=501)


def test_a_text_longer_than_the_batch_is_refused_with_both_numbers() -> None:
    message = (
        "input (6001 tokens) is too large to process. increase the physical batch size "
        "(current batch size: 512)"
    )
    with pytest.raises(ContextOverflowError) as caught:
        embedded({"error": {"code": 500, "message": message}}, status=500)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (6001, 512)


# --- lengths ----------------------------------------------------------------------------------


class Engine:
    """An engine whose tokens are letters, between a token 1 and a token 2."""

    def __init__(
        self, kind: str = "xllamacpp", *, told: int | None = 8, limit: int = 8, context: int = 64
    ) -> None:
        self.limit = limit
        self.embedded: list[list[str]] = []
        self.endpoint = endpoint(kind, context=context, batch=told)

    def embed(self, texts: list[str], **options: Any) -> EmbeddingResult:
        return performed(embed(texts, Limits(), model=None, **options), self.endpoint, self.answer)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, object]:
        if path == "/v1/embeddings":
            return self.vectors(body["input"])
        if path == "/extras/tokenize/count":
            assert self.endpoint.kind == "llama-cpp-python"
            return 200, {"count": len(body["input"]) + 2}
        assert path == "/tokenize"
        assert self.endpoint.kind == "xllamacpp"
        content = body["content"] if isinstance(body["content"], list) else [body["content"]]
        tokens: list[int] = []
        for number, piece in enumerate(content):
            made = [ord(letter) for letter in piece] if isinstance(piece, str) else [piece]
            around = body["add_special"] and number == 0
            tokens += [1, *made, 2] if around else made
        return 200, {"tokens": tokens}

    def vectors(self, inputs: list[Any]) -> tuple[int, object]:
        texts = [
            text if isinstance(text, str) else "".join(map(chr, text[1:-1])) for text in inputs
        ]
        for given, text in zip(inputs, texts, strict=True):
            if isinstance(given, list):
                assert (given[0], given[-1]) == (1, 2)
            if len(text) + 2 > self.limit and self.endpoint.kind != "llama-cpp-python":
                said = (
                    f"input ({len(text) + 2} tokens) is too large to process. increase the "
                    f"physical batch size (current batch size: {self.limit})"
                )
                return 500, {"error": {"code": 500, "message": said}}
        self.embedded.append(texts)
        return 200, data(*([float(len(text)), 1.0] for text in texts))


@pytest.mark.parametrize("kind", ["xllamacpp", "llama-cpp-python"])
def test_texts_that_are_too_long_are_named_before_anything_is_computed(kind: str) -> None:
    engine = Engine(kind)
    with pytest.raises(TextTooLongError) as caught:
        engine.embed(["a", "b" * 6, "c" * 7, "d", "e" * 90])
    assert caught.value.too_long == {2: 9, 4: 92}
    assert (caught.value.index, caught.value.limit) == (2, 8)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (9, 8)
    assert "texts[2] has 9 tokens, but a text to embed may have 8 (and so are 4)" in str(
        caught.value
    )
    assert engine.embedded == []


def test_the_context_bounds_a_text_as_well() -> None:
    with pytest.raises(TextTooLongError) as caught:
        Engine(told=512, context=16).embed(["x" * 15])
    assert caught.value.limit == 16


def test_a_text_just_as_long_as_may_be_is_embedded_whole() -> None:
    engine = Engine()
    assert len(engine.embed(["b" * 6]).vectors) == 1
    assert engine.embedded == [["bbbbbb"]]


def test_what_is_truncated_is_embedded_as_far_as_it_fits_and_told() -> None:
    engine = Engine()
    made = engine.embed(["a", "abcdefghij", "b" * 6], truncate=True)
    assert engine.embedded == [["a", "abcdef", "bbbbbb"]]
    assert isinstance(made, TruncatedEmbeddingResult)
    assert made.truncated == (TruncatedText(index=1, tokens=12, kept=8),)


def test_llama_cpp_python_truncates_by_itself_and_that_is_told() -> None:
    engine = Engine("llama-cpp-python")
    made = engine.embed(["a", "abcdefghij"], truncate=True)
    assert isinstance(made, TruncatedEmbeddingResult)
    assert made.truncated == (TruncatedText(index=1, tokens=12, kept=8),)


def test_a_result_is_the_contracts_own_unless_truncation_was_asked_for() -> None:
    assert type(Engine().embed(["a"])) is EmbeddingResult
    made = Engine().embed(["a"], truncate=True)
    assert isinstance(made, TruncatedEmbeddingResult)
    assert made.truncated == ()


@pytest.mark.parametrize("truncate", [False, True])
def test_a_limit_that_nobody_told_is_learned_from_the_refusal(truncate: bool) -> None:
    engine = Engine(told=None)
    texts = ["a", "b" * 70, "c"]
    if not truncate:
        with pytest.raises(TextTooLongError) as caught:
            engine.embed(texts)
        assert caught.value.too_long == {1: 72}
        return
    made = engine.embed(texts, truncate=True)
    assert isinstance(made, TruncatedEmbeddingResult)
    assert made.truncated == (TruncatedText(index=1, tokens=72, kept=8),)
    assert engine.embedded == [["a", "b" * 6, "c"]]


def test_where_nothing_can_be_counted_the_text_is_found_by_trying() -> None:
    engine = Engine("openai", told=None)
    with pytest.raises(TextTooLongError) as caught:
        engine.embed(["a", "b", "c" * 70])
    assert caught.value.too_long == {2: 72}
    with pytest.raises(LLMCapabilityError, match=r"texts\[1\] is too long"):
        engine.embed(["a", "c" * 70], truncate=True)


def test_vectors_are_kept_in_four_bytes_a_number() -> None:
    vectors = embedded(data(*PAIR)).vectors
    assert isinstance(vectors, Vectors)
    assert vectors.matrix.nbytes == 16
    assert vectors.matrix.shape == (2, 2)
    rows: Any = vectors.matrix.tolist()
    assert rows == [list(each) for each in vectors]
    assert (vectors[0], vectors[-1], vectors[:1]) == (*vectors, [vectors[0]])
    assert vectors == list(vectors)
    assert vectors != [vectors[0]]
    assert vectors == pickle.loads(pickle.dumps(vectors))
    with pytest.raises(IndexError):
        vectors[2]
    with pytest.raises(TypeError):
        vectors.matrix[0, 0] = 1.0
