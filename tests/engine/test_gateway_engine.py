"""The gateway before a real engine, as OpenAI's clients meet it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.gateways import Gateway, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.engine, pytest.mark.process]

HELLO: Any = [{"role": "user", "content": "Hello there."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 30, "maximum": 34},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{2}$"},
    },
    "required": ["age", "code"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def gateway(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("home")
    # With a small batch answers are the same alone and in company: docs/recovery.md.
    options = ("--ctx-size", "512", "--parallel", "4", "--batch-size", "32")
    with serving(tiny_model_path, *options, home=home) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.client(max_retries=0) as made:
        yield made


def test_a_whole_answer_has_openai_s_form_and_exact_counts(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_completion_tokens=8, seed=3
    )
    assert reply.model == "tiny-chat"
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert reply.usage
    assert reply.usage.completion_tokens == 8
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8
    assert reply.to_dict()["runtime"]["seed"] == 3  # type: ignore[index]


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 12, "seed": 3}
    asked |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    scores = [c.choices[0].logprobs for c in chunks if c.choices]
    told: Any = whole.choices[0].logprobs
    assert told.content
    assert len(told.content[0].top_logprobs) == 2
    assert [each for some in scores if some for each in some.content or ()] == told.content
    assert sum(some is not None for some in scores) > 1, "they come with their pieces"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert not chunks[-1].choices
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({c.id for c in chunks}) == 1


def test_no_usage_in_a_stream_that_did_not_ask_for_it(gateway: Gateway) -> None:
    body = {"messages": HELLO, "max_tokens": 2, "stream": True}
    answer = gateway.post("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last = [line for line in answer.body.split("\n\n") if line]
    assert last == "data: [DONE]"
    assert not any("usage" in json.loads(event.removeprefix("data: ")) for event in events)


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    """What llama.cpp's own server leaves open: the range and the pattern."""
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    reply = client.chat.completions.create(
        model="tiny-chat", messages=HELLO, max_tokens=100, response_format=wanted
    )
    made = json.loads(reply.choices[0].message.content or "")
    assert made.keys() == {"age", "code"}
    assert 30 <= made["age"] <= 34


@pytest.mark.parametrize("stream", [False, True])
def test_json_cut_off_says_so_by_its_finish_reason(client: openai.OpenAI, *, stream: bool) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    asked: Any = {"model": "tiny-chat", "messages": HELLO, "max_tokens": 2, "seed": 1}
    if stream:
        chunks = client.chat.completions.create(**asked, response_format=wanted, stream=True)
        reason = [chunk.choices[0].finish_reason for chunk in chunks][-1]
    else:
        reply = client.chat.completions.create(**asked, response_format=wanted)
        reason = reply.choices[0].finish_reason
    assert reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_tools_in_its_template_calls_one(
    client: openai.OpenAI, *, stream: bool
) -> None:
    asked: Any = {
        "model": "tiny-chat",
        "messages": HELLO,
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_tokens": 100,
    }
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        pieces = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
        assert pieces[0].id
        assert pieces[0].function
        assert pieces[0].function.name == "get_weather"
        assert {piece.index for piece in pieces} == {0}
        arguments = "".join(p.function.arguments or "" for p in pieces if p.function)
    else:
        reply = client.chat.completions.create(**asked)
        (call,) = reply.choices[0].message.tool_calls or [None]
        assert call
        assert call.type == "function"
        assert call.function.name == "get_weather"
        arguments = call.function.arguments
        assert reply.choices[0].finish_reason == "tool_calls"
    assert json.loads(arguments)["city"] in {"Rome", "Oslo"}


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny-chat", messages=[{"role": "user", "content": "word " * 900}], stream=True
        )
    assert caught.value.code == "context_length_exceeded"
    assert "512" in caught.value.message


def test_an_unknown_model_is_404_and_says_what_there_is(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "tiny-chat" in caught.value.message


def test_no_path_is_read_for_a_request(gateway: Gateway, tiny_model_path: Path) -> None:
    """Not even the very file that is served: its path is the operator's."""
    body = {"messages": HELLO, "max_tokens": 1}
    for reference in (f"{tiny_model_path.parent}/../x.gguf", "./x.gguf", "file:///etc/passwd"):
        answer = gateway.post("/v1/chat/completions", {**body, "model": reference})
        assert answer.status == 404
        assert "name it to `serve`" in answer.body["error"]["message"]


def test_models_health_and_snapshot(gateway: Gateway, client: openai.OpenAI) -> None:
    assert next(model.id for model in client.models.list()) == "tiny-chat"
    assert client.models.retrieve("tiny-chat").owned_by == "llama-runtime"
    health = gateway.get("/health")
    assert (health.status, health.body["status"]) == (200, "ready")
    picture = gateway.get("/snapshot").body
    assert picture["gateway"]["address"] == gateway.url
    (model,) = picture["models"]
    assert (model["name"], model["state"]) == ("tiny-chat", "ready")
    assert model["snapshot"]["context"]["actual"] == 512
    assert model["queue"]["slots"] == 4
    assert 0 < picture["memory"]["held_bytes"] <= picture["memory"]["budget_bytes"]
    if sys.platform == "linux":  # what a token costs was measured on this event loop
        loaded = Path(f"/proc/{picture['gateway']['pid']}/maps").read_text("utf-8")
        assert "/uvloop/" in loaded


def test_errors_have_openai_s_shape(gateway: Gateway) -> None:
    def problem(path: str, body: object) -> tuple[int, Any]:
        answer = gateway.post(path, body)
        return answer.status, answer.body["error"]

    chat = "/v1/chat/completions"
    assert problem(chat, b"{")[0] == 400
    assert problem(chat, [])[0] == 400
    status, error = problem(chat, {"messages": [{"role": "user", "content": 5}]})
    assert (status, error["param"]) == (400, "messages[0].content")
    assert set(error) == {"message", "type", "param", "code"}
    assert problem(chat, {"messages": HELLO, "seed": -7})[1]["param"] == "seed"
    assert problem(chat, {"messages": HELLO, "n": 2})[1]["param"] == "n"
    assert problem("/v1/nothing", {})[0] == 404
    assert gateway.get(chat).status == 405
