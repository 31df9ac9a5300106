"""What the tiny models promise to those who test with them, kept by a real engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from runtime.testing.tiny_model import build_tiny_model
from tests.engine.bare_engine import bare_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.bare_engine import BareEngine

pytestmark = pytest.mark.engine

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "size": {"enum": ["small", "large"]},
        "ratio": {"type": "number"},
        "nested": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]},
    },
    "required": ["name", "age", "tags", "size", "ratio", "nested"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareEngine]:
    path = build_tiny_model(tmp_path_factory.mktemp("tiny") / "chat.gguf", tools=True)
    with bare_engine(path, slot_ctx=2048, parallel=2) as engine:
        yield engine


def ask(engine: BareEngine, text: str, **options: Any) -> Any:
    """The choice of one chat."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 400} | options
    (choice,) = engine.post("/v1/chat/completions", **body)["choices"]
    return choice


@pytest.mark.parametrize("temperature", [0, 0.8, 1.5])
def test_it_goes_on_in_words_until_its_budget_is_used_up(
    chatty: BareEngine, temperature: float
) -> None:
    choice = ask(chatty, "Tell me something", temperature=temperature, seed=1, max_tokens=300)

    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].isascii()
    assert choice["message"]["content"].count(" ") > 200


def test_what_it_says_depends_on_seed_and_prompt(chatty: BareEngine) -> None:
    def said(text: str, seed: int) -> str:
        content: str = ask(chatty, text, seed=seed, max_tokens=24)["message"]["content"]
        return content

    assert said("Hello", 1) == said("Hello", 1)
    assert len({said("Hello", seed) for seed in range(4)}) > 1
    assert said("Hello", 1) != said("Another thing altogether", 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", ["json_schema", "llguidance"])
def test_under_a_grammar_it_comes_to_an_end(chatty: BareEngine, way: str, seed: int) -> None:
    steering: dict[str, Any] = (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}
        if way == "json_schema"
        else {"grammar": f"%llguidance {{}}\nstart: %json {json.dumps(SCHEMA)}"}
    )

    choice = ask(chatty, "Describe it", seed=seed, temperature=seed * 0.5, **steering)

    assert choice["finish_reason"] == "stop"
    answer = json.loads(choice["message"]["content"])
    assert set(answer) == set(SCHEMA["required"])
    assert isinstance(answer["age"], int)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_with_tools_it_calls_one_and_answers_once_that_has(chatty: BareEngine, choice: str) -> None:
    first = ask(chatty, "How is the weather?", tools=[TOOL], tool_choice=choice, seed=1)
    (call,) = first["message"]["tool_calls"]

    answer = chatty.post(
        "/v1/chat/completions",
        messages=[
            {"role": "user", "content": "How is the weather?"},
            first["message"],
            {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
        ],
        tools=[TOOL],
        max_tokens=16,
    )["choices"][0]

    assert first["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "get_weather"
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    assert not answer["message"].get("tool_calls")
    assert answer["message"]["content"]


def test_every_byte_can_be_tokenized(chatty: BareEngine) -> None:
    text = '{"ü": [1.5, \'日本\', "\\n"]}\t🦙'

    tokens = chatty.post("/tokenize", content=text)["tokens"]

    assert chatty.post("/detokenize", tokens=tokens)["content"] == text


def test_the_embedding_model_embeds(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "embedding.gguf", "embedding")

    with bare_engine(path, slot_ctx=512, parallel=1, pooling=None, physical_batch=512) as engine:
        answer = engine.post("/v1/embeddings", input=["a cat", "a cat!", "quantum physics", "日本"])

    first, near, far, other = (entry["embedding"] for entry in answer["data"])
    assert len(first) == 64
    assert similarity(first, near) > similarity(first, far)
    assert similarity(other, other) == pytest.approx(1.0, abs=1e-3)


def similarity(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))
