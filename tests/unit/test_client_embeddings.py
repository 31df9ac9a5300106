"""Embeddings in every form that servers answer with, with no network."""

from __future__ import annotations

import base64
import json
import math
from array import array
from typing import Any

import pytest

from runtime.contracts import EmbeddingResult, Usage
from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.errors import ContextOverflowError, LLMBadResponseError, LLMCapabilityError
from runtime.inference.clock import Limits
from runtime.inference.effects import HttpHead, Locate, Open, Read
from runtime.inference.embeddings import embed

PAIR = [[3.0, 4.0], [0.0, -2.0]]


def embedded(
    answer: Any, *, status: int = 200, kind: str = "xllamacpp", known: bool | None = None
) -> EmbeddingResult:
    """What two texts become when the server answers this."""
    endpoint = Endpoint(
        base_url="http://127.0.0.1:1",
        api_key=None,
        kind=kind,
        model="m~0123456789ab",
        capabilities=EngineCapabilities(embeddings=known),
        context_tokens=None,
    )
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    flow = embed(["a", "b"], Limits(), model=None)
    parts = [body, b""]
    result: Any = None
    while True:
        try:
            effect = flow.send(result)
        except StopIteration as stop:
            made: EmbeddingResult = stop.value
            return made
        if isinstance(effect, Locate):
            result = endpoint
        elif isinstance(effect, Open):
            result = HttpHead(status=status, headers={"content-type": "application/json"})
        else:
            assert isinstance(effect, Read)
            result = parts.pop(0)


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
    first, second = [0.6, 0.8], [math.sqrt(0.5), math.sqrt(0.5) + 1e-9]
    assert embedded(data(first, second)).vectors == (tuple(first), tuple(second))


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
