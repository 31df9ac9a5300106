"""Anthropic's dialect, checked against the types of Anthropic's own client."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from hypothesis import given, settings
from pydantic import TypeAdapter

from runtime.errors import (
    ContextOverflowError,
    EngineNotRunningError,
    LLMBadResponseError,
    LLMInvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
)
from runtime.gateway import anthropic
from runtime.gateway.dialect import InvalidFieldError
from runtime.inference import wishes
from runtime.inference.messages import openai_messages
from runtime.inference.policy import Policy
from tests.unit.gateway_answers import CUTS, answers, call, events, pieces, response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts import LLMResponse
    from runtime.errors import LLMError

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ASK: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 16,
    "messages": [{"role": "user", "content": "Hi."}],
}
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}


def messages(**more: Any) -> list[dict[str, object]]:
    """The conversation as the core takes it, in OpenAI's form."""
    asked = anthropic.request(ASK | more).request
    return list(openai_messages(asked.messages))


def options(**more: Any) -> dict[str, object]:
    return anthropic.request(ASK | more).request.provider_options


# --- requests -------------------------------------------------------------------------------------


def test_a_plain_question() -> None:
    asked = anthropic.request({**ASK, "temperature": 0.5, "metadata": {"user_id": "u"}})

    assert (asked.model, asked.stream) == ("tiny", False)
    assert (asked.request.max_tokens, asked.request.temperature) == (16, 0.5)
    assert asked.request.metadata == {"user_id": "u"}
    assert messages() == [{"role": "user", "content": "Hi."}]


def test_the_system_prompt_is_a_string_or_blocks() -> None:
    said = {"role": "system", "content": "Be brief."}
    cached = {"type": "ephemeral"}
    blocks = [{"type": "text", "text": "Be", "cache_control": cached}, text("brief.")]

    assert messages(system="Be brief.")[0] == said
    assert messages(system=blocks)[0] == said | {"content": "Be\n\nbrief."}


def text(words: str) -> dict[str, object]:
    return {"type": "text", "text": words}


def test_what_claude_code_tells_its_service_is_not_told_to_the_model() -> None:
    """It differs with every request, and would keep each prompt out of the engine's cache."""
    billing = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=5fe1a;"

    assert messages(system=[text(billing), text("Be brief.")])[0]["content"] == "Be brief."
    assert messages(system=f"{billing}\nBe brief.")[0]["content"] == "Be brief."
    assert messages(system=[text(billing)])[0]["role"] == "user"
    quoted = messages(system=[text("Be brief."), text(billing)])[0]["content"]
    assert quoted == f"Be brief.\n\n{billing}"


def test_calls_and_their_results() -> None:
    made = messages(
        messages=[
            {"role": "user", "content": "Add."},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    text("I add."),
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"x": 1}},
                    {"type": "tool_use", "id": "t2", "name": "sub", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [text("2")]},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": "no",
                        "is_error": True,
                    },
                    text("Well?"),
                ],
            },
        ]
    )

    first = {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    second = {"id": "t2", "type": "function", "function": {"name": "sub", "arguments": "{}"}}
    assert made == [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "I add.", "tool_calls": [first, second]},
        {"role": "tool", "content": "2", "tool_call_id": "t1", "name": "add"},
        {"role": "tool", "content": "Error: no", "tool_call_id": "t2", "name": "sub"},
        {"role": "user", "content": "Well?"},
    ]


def test_results_alone_are_no_turn_of_the_user() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1"}

    assert [
        each["role"] for each in messages(messages=[{"role": "user", "content": [result]}])
    ] == ["tool"]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "add"}, {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_the_choice_of_tools(choice: dict[str, object], wanted: object) -> None:
    asked = anthropic.request({**ASK, "tools": [TOOL], "tool_choice": choice}).request

    assert asked.provider_options["tool_choice"] == wanted
    assert "parallel_tool_calls" not in asked.provider_options
    (tool,) = asked.tools
    assert (tool.name, tool.description, tool.input_schema) == ("add", "Adds.", {"type": "object"})
    wish = wishes.from_request(asked, policy=Policy())
    assert wish.tools
    assert wish.tools.choice in {"auto", "required", "none", "add"}


@pytest.mark.parametrize("single", [True, False])
def test_calls_side_by_side(single: bool) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": single}

    assert options(tools=[TOOL], tool_choice=choice)["parallel_tool_calls"] is not single


def test_other_wishes() -> None:
    made = options(
        stop_sequences=["END"],
        top_k=5,
        top_p=0.9,
        seed=3,
        thinking={"type": "enabled", "budget_tokens": 64},
    )

    del made["on_truncation"]
    assert made == {
        "stop": ["END"],
        "top_k": 5,
        "top_p": 0.9,
        "seed": 3,
        "thinking_budget_tokens": 64,
    }
    off = options(thinking={"type": "disabled"})
    assert off["chat_template_kwargs"] == {"enable_thinking": False}
    assert "thinking_budget_tokens" not in options(thinking={"type": "adaptive"})


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_structured_answers(field: str) -> None:
    wanted = {"type": "json_schema", "schema": {"type": "object"}}
    given = {"format": wanted, "effort": "low"} if field == "output_config" else wanted

    asked = anthropic.request(ASK | {field: given}).request

    assert asked.response_schema == {"type": "object"}


def test_what_only_steers_the_service_is_tolerated() -> None:
    made = options(
        service_tier="auto",
        cache_control={"type": "ephemeral"},
        context_management={"edits": []},
        betas=["x"],
    )

    assert set(made) == {"on_truncation"}


def test_keep_alive_is_the_gateways() -> None:
    assert anthropic.request(ASK | {"keep_alive": "2m"}).keep_alive_s == 120


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
RESULT: dict[str, object] = {"type": "tool_result", "tool_use_id": "t"}
USE: dict[str, object] = {"type": "tool_use", "id": "t", "name": "n", "input": {}}


def said(*blocks: dict[str, Any], role: str = "user") -> dict[str, object]:
    return {"messages": [{"role": role, "content": [*blocks]}]}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hi."]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]"),
        (said({"type": "text", "text": "a"}, IMAGE), "messages[0].content[1].type"),
        (said({"type": "document"}), "messages[0].content[0].type"),
        (said({"type": []}), "messages[0].content[0].type"),
        (said({"type": "text"}), "messages[0].content[0].text"),
        (said(USE), "messages[0].content[0]"),
        (said(RESULT | {"content": [IMAGE]}), "messages[0].content[0].content[0].type"),
        (said(RESULT, role="assistant"), "messages[0].content[0]"),
        (said(USE | {"input": "x"}, role="assistant"), "messages[0].content[0].input"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "add"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        anthropic.request(ASK | wrong)

    assert caught.value.param == param
    assert caught.value.message.startswith(param)


def test_an_input_that_is_nested_too_deeply() -> None:
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"a": deep}
    turn = {"role": "assistant", "content": [USE | {"input": deep}]}

    with pytest.raises(LLMInvalidRequestError, match="nested"):
        anthropic.request(ASK | {"messages": [turn]})


def test_counting_needs_no_bound() -> None:
    asked = anthropic.count({"model": "tiny", "messages": ASK["messages"], "tools": [TOOL]})

    assert asked.request.max_tokens is None
    assert len(asked.request.tools) == 1
    assert MessageTokensCount.model_validate(anthropic.counted(3)).input_tokens == 3


# --- answers --------------------------------------------------------------------------------------


def whole(made: LLMResponse) -> Message:
    return Message.model_validate(anthropic.answer(made, anthropic.request(ASK)))


def content(message: Message) -> list[dict[str, Any]]:
    return [block.model_dump(exclude_none=True) for block in message.content]


def test_an_answer() -> None:
    message = whole(response("Hello."))

    assert content(message) == [text("Hello.")]
    assert (message.model, message.stop_reason, message.stop_sequence) == ("tiny", "end_turn", None)
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (7, 4, 7)


def test_an_answer_with_thoughts_and_calls() -> None:
    message = whole(response("So.", call(), raw={"reasoning": "Hm."}))

    assert content(message) == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        text("So."),
        {"type": "tool_use", "id": "call_1", "name": "add", "input": {"x": 1}},
    ]
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("reason", "notes", "wanted"),
    [
        ("length", {"length_limit": "max_tokens"}, ("max_tokens", None)),
        ("length", {"length_limit": "context"}, ("model_context_window_exceeded", None)),
        ("stop", {"stop_text": "END"}, ("stop_sequence", "END")),
        ("stop", {}, ("end_turn", None)),
    ],
)
def test_why_it_ended(
    reason: str, notes: dict[str, object], wanted: tuple[str, str | None]
) -> None:
    made = response("a", finish_reason=reason, raw=notes)

    message, streamed = whole(made), accumulated(made)

    assert (message.stop_reason, message.stop_sequence) == wanted
    assert (streamed.stop_reason, streamed.stop_sequence) == wanted


def test_a_call_that_was_cut_off_is_given_as_far_as_it_came() -> None:
    message = whole(response("", call(arguments='{"x": 1, "y": [2, 3'), finish_reason="length"))

    assert content(message)[0]["input"]["x"] == 1
    assert message.stop_reason == "max_tokens"


# --- streams --------------------------------------------------------------------------------------


def streamed(made: LLMResponse, cuts: Sequence[int] = (3,)) -> list[Mapping[str, Any]]:
    encoder = anthropic.encoder(anthropic.request(ASK))
    data = encoder.begin("tiny") + b"".join(map(encoder.piece, pieces(made, cuts)))
    return events(data + encoder.end(made))


def accumulated(made: LLMResponse, cuts: Sequence[int] = (3,)) -> Message:
    """The message that a client puts together, which Anthropic's own one does the same way."""
    message: dict[str, Any] = {}
    for event in streamed(made, cuts):
        if event["type"] == "ping":
            continue
        EVENT.validate_python(event)
        match event:
            case {"type": "message_start"}:
                message = event["message"]
            case {"type": "content_block_start"}:
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "json": "", "open": True})
            case {"type": "content_block_delta", "delta": delta}:
                block = message["content"][event["index"]]
                assert block["open"]
                if delta["type"] == "text_delta":
                    block["text"] += delta["text"]
                elif delta["type"] == "thinking_delta":
                    block["thinking"] += delta["thinking"]
                else:
                    block["json"] += delta["partial_json"]
            case {"type": "content_block_stop"}:
                block = message["content"][event["index"]]
                assert block.pop("open")
                arguments = block.pop("json")
                if block["type"] == "tool_use" and arguments:
                    block["input"] = json.loads(arguments)
            case {"type": "message_delta"}:
                message |= event["delta"]
                message["usage"] |= event["usage"]
    assert not any("open" in block for block in message["content"])
    return Message.model_validate(message)


def test_the_events_of_a_stream() -> None:
    assert [event["type"] for event in streamed(response("Hello.", call()))] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@given(answers(), CUTS)
@settings(max_examples=30)
def test_a_stream_makes_the_message_that_is_given_whole(made: LLMResponse, cuts: list[int]) -> None:
    together, at_once = accumulated(made, cuts), whole(made)

    assert content(together) == content(at_once)
    assert together.usage.model_dump() == at_once.usage.model_dump()
    assert together.stop_reason == at_once.stop_reason


def test_a_stream_that_fails_ends_with_the_error() -> None:
    encoder = anthropic.encoder(anthropic.request(ASK))
    encoder.begin("tiny")

    (event,) = events(encoder.failed(EngineNotRunningError("Gone.", state="failed")))

    assert ErrorResponse.model_validate({**event, "request_id": None}).error.type == "api_error"
    assert event["error"]["message"] == "Gone."


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exc", "status", "kind"),
    [
        (LLMInvalidRequestError("No.", hint="Try."), 400, "invalid_request_error"),
        (ModelNotFoundError("No.", reference="x", hint="Try."), 404, "not_found_error"),
        (
            QueueFullError("No.", waiting=1, running=1, max_queue=1, hint="Try."),
            429,
            "rate_limit_error",
        ),
        (LLMBadResponseError("No.", hint="Try."), 502, "api_error"),
    ],
)
def test_errors(exc: LLMError, status: int, kind: str) -> None:
    answered, body = anthropic.error(exc)

    assert answered == status
    problem = ErrorResponse.model_validate({**body, "request_id": None}).error
    assert (problem.type, problem.message) == (kind, "No. Try.")


def test_an_overflow_is_said_in_the_words_that_agents_look_for() -> None:
    exc = ContextOverflowError("Too long.", prompt_tokens=900, context_tokens=512)

    status, body = anthropic.error(exc)

    assert status == 400
    assert str(body["error"]["message"]).startswith("prompt is too long: 900 tokens > 512 maximum")  # type: ignore[index]
