"""The dialect of OpenAI's Responses API, checked against the types of OpenAI's own client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from runtime.errors import EngineNotRunningError, ModelNotFoundError, QueueFullError
from runtime.gateway.conversations import Conversations, Kept
from runtime.gateway.dialect import InvalidFieldError, Turn
from runtime.gateway.responses import NotKeptError, Responses
from runtime.inference import wishes
from runtime.inference.messages import openai_messages
from runtime.inference.policy import Policy
from tests.unit.gateway_answers import CUTS, answers, call, events, pieces, response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts import LLMResponse
    from runtime.gateway.dialect import Call

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ASK: dict[str, Any] = {"model": "tiny", "input": "Hi."}
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}


@pytest.fixture
def dialect() -> Responses:
    return Responses()


def messages(asked: Call) -> list[dict[str, object]]:
    """The conversation as the core takes it, in OpenAI's form."""
    return list(openai_messages(asked.request.messages))


def request(**more: Any) -> Call:
    return Responses().request(ASK | more)


# --- requests -------------------------------------------------------------------------------------


def test_a_plain_question() -> None:
    asked = request(
        instructions="Be brief.",
        max_output_tokens=16,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        metadata={"a": "b"},
    )

    assert (asked.model, asked.stream) == ("tiny", False)
    assert (asked.request.max_tokens, asked.request.temperature) == (16, 0.5)
    assert asked.request.metadata == {"a": "b"}
    assert asked.request.provider_options.items() >= {"top_p": 0.9, "seed": 3}.items()
    assert messages(asked) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
    ]


def test_items_of_every_kind() -> None:
    answered = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I add.", "annotations": []}],
    }
    asked = request(
        input=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Add."}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            answered,
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"x": 1}'},
            {"type": "function_call", "call_id": "c2", "name": "sub", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "2"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "0"}],
            },
            {"type": "function_call", "call_id": "c3", "name": "add", "arguments": "{}"},
        ]
    )

    def made(call_id: str, name: str, arguments: str) -> dict[str, object]:
        function = {"name": name, "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}

    calls = [made("c1", "add", '{"x": 1}'), made("c2", "sub", "{}")]
    assert messages(asked) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "I add.", "tool_calls": calls},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
        {"role": "tool", "content": "0", "tool_call_id": "c2", "name": "sub"},
        {"role": "assistant", "content": "", "tool_calls": [made("c3", "add", "{}")]},
    ]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "add"}, "add"),
    ],
)
def test_the_choice_of_tools(choice: object, wanted: str) -> None:
    asked = request(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)

    wish = wishes.from_request(asked.request, policy=Policy())
    assert wish.tools
    assert wish.tools.choice == wanted
    assert wish.options["parallel_tool_calls"] is False


def test_some_of_the_tools_may_be_called() -> None:
    choice = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "sub"}],
    }

    asked = request(tools=[TOOL, TOOL | {"name": "sub"}], tool_choice=choice)

    assert [tool.name for tool in asked.request.tools] == ["sub"]
    assert asked.request.provider_options["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("choice", "tools", "formatted"),
    [
        ("required", 1, False),
        ({"type": "function", "name": "add"}, 1, False),
        ("none", 0, True),
        ("auto", 1, True),
        (None, 1, True),
    ],
)
def test_a_format_holds_for_text_alone(choice: object, tools: int, formatted: bool) -> None:
    """Instructor sends one along with the tool that must be called."""
    form = {"format": {"type": "json_object"}}

    asked = request(tools=[TOOL], tool_choice=choice, text=form).request

    assert len(asked.tools) == tools
    assert (asked.response_format is not None) is formatted


def test_a_tool_without_parameters() -> None:
    asked = request(tools=[{"type": "function", "name": "now", "parameters": None}])

    assert asked.request.tools[0].input_schema == {"type": "object", "properties": {}}


def test_structured_answers() -> None:
    schema = {"type": "object"}
    given = {"type": "json_schema", "name": "n", "schema": schema, "strict": False}

    assert request(text={"format": given}).request.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": False},
    }
    for plain in ({"type": "json_object"}, {"type": "text"}):
        wanted = request(text={"format": plain, "verbosity": "low"}).request
        assert wanted.response_format == plain
        wishes.from_request(wanted, policy=Policy())


def test_other_wishes() -> None:
    assert request(truncation="auto").request.provider_options["fit"] == "drop_oldest"
    assert "fit" not in request(truncation="disabled").request.provider_options
    off = request(reasoning={"effort": "none"}).request.provider_options
    assert off["chat_template_kwargs"] == {"enable_thinking": False}
    assert request(keep_alive="2m").keep_alive_s == 120


def test_what_only_steers_the_service_is_tolerated() -> None:
    asked = request(
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        service_tier="auto",
        stream_options={"include_obfuscation": False},
        user="u",
        reasoning={"effort": "medium", "summary": "auto"},
    )

    assert set(asked.request.provider_options) == {"on_truncation"}


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"input": 1}, "input"),
        ({"input": None}, "input"),
        ({"input": ["Hi."]}, "input[0]"),
        ({"input": [{"role": "tool", "content": ""}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": []}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "n"}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input[0].id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "patch"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        request(**wrong)

    status, body = Responses().error(caught.value)
    assert (status, caught.value.param) == (400, param)
    assert body["error"]["param"] == param  # type: ignore[index]


# --- answers --------------------------------------------------------------------------------------


def whole(made: LLMResponse, **more: Any) -> Response:
    dialect = Responses()
    return Response.model_validate(dialect.answer(made, dialect.request(ASK | more)))


def items(answered: Response) -> list[dict[str, Any]]:
    """The items without their ids, which nothing else has."""
    return [item.model_dump(exclude={"id"}, exclude_none=True) for item in answered.output]


def test_an_answer() -> None:
    answered = whole(response("Hello."), tools=[TOOL], temperature=0.5, instructions="Brief.")

    assert answered.output_text == "Hello."
    assert (answered.status, answered.incomplete_details) == ("completed", None)
    assert answered.usage
    assert answered.usage.input_tokens_details.cached_tokens == 4
    counts = (
        answered.usage.input_tokens,
        answered.usage.output_tokens,
        answered.usage.total_tokens,
    )
    assert counts == (11, 7, 18)
    assert (answered.model, answered.temperature, answered.instructions) == ("tiny", 0.5, "Brief.")
    assert answered.tools[0].type == "function"


def test_an_answer_with_thoughts_and_calls() -> None:
    answered = whole(response("So.", call(), raw={"reasoning": "Hm."}))

    thought, said, called = items(answered)
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert said["content"][0]["text"] == "So."
    assert called == {
        "type": "function_call",
        "call_id": "call_1",
        "name": "add",
        "arguments": '{"x": 1}',
        "status": "completed",
    }


def test_calls_alone_are_no_message() -> None:
    assert [item["type"] for item in items(whole(response("", call())))] == ["function_call"]


def test_an_answer_that_was_cut_off() -> None:
    answered = whole(response("Hel", finish_reason="length"))

    assert answered.status == "incomplete"
    assert answered.incomplete_details
    assert answered.incomplete_details.reason == "max_output_tokens"
    assert items(answered)[0]["status"] == "incomplete"


# --- streams --------------------------------------------------------------------------------------


def streamed(
    made: LLMResponse, cuts: Sequence[int] = (3,), dialect: Responses | None = None
) -> list[Mapping[str, Any]]:
    dialect = dialect or Responses()
    encoder = dialect.encoder(dialect.request(ASK))
    data = encoder.begin("tiny") + b"".join(map(encoder.piece, pieces(made, cuts)))
    found = events(data + encoder.end(made))
    for number, event in enumerate(found):
        EVENT.validate_python(event)
        assert event["sequence_number"] == number
    return found


def accumulated(found: Sequence[Mapping[str, Any]]) -> Response:
    """The response that a client puts together from the items, which must be the last event's."""
    output: list[Any] = []
    for event in found:
        match event:
            case {"type": "response.output_item.added", "item": item}:
                assert event["output_index"] == len(output)
                output.append(item)
            case {"type": "response.content_part.added", "part": part}:
                assert event["content_index"] == len(output[-1]["content"])
                output[-1]["content"].append(part)
            case {"type": "response.output_text.delta" | "response.reasoning_text.delta"}:
                output[-1]["content"][event["content_index"]]["text"] += event["delta"]
            case {"type": "response.function_call_arguments.delta"}:
                output[-1]["arguments"] += event["delta"]
            case {"type": "response.output_text.done" | "response.reasoning_text.done"}:
                assert event["text"] == output[-1]["content"][-1]["text"]
            case {"type": "response.function_call_arguments.done"}:
                assert event["arguments"] == output[-1]["arguments"]
            case {"type": "response.content_part.done", "part": part}:
                assert part == output[-1]["content"][-1]
            case {"type": "response.output_item.done", "item": item}:
                status = item["status"]
                assert item == output[-1] | {"status": status}
                output[-1] = item
        if "item_id" in event:
            assert event["item_id"] == output[event["output_index"]]["id"]
    last = found[-1]["response"]
    assert last["output"] == output
    return Response.model_validate(last)


def test_the_events_of_a_stream() -> None:
    assert [event["type"] for event in streamed(response("Hello.", call()))] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


@given(answers(), CUTS)
@settings(max_examples=30)
def test_a_stream_makes_the_response_that_is_given_whole(
    made: LLMResponse, cuts: list[int]
) -> None:
    together, at_once = accumulated(streamed(made, cuts)), whole(made)

    assert items(together) == items(at_once)
    assert (together.status, together.usage) == (at_once.status, at_once.usage)


def test_a_stream_that_was_cut_off() -> None:
    found = streamed(response("Hel", finish_reason="length"))

    assert found[-1]["type"] == "response.incomplete"
    assert found[-2]["item"]["status"] == "incomplete"
    assert found[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (EngineNotRunningError("Gone.", state="failed"), "server_error"),
        (QueueFullError("Gone.", waiting=1, running=1, max_queue=1), "rate_limit_exceeded"),
    ],
)
def test_a_stream_that_fails(exc: Any, code: str, dialect: Responses) -> None:
    encoder = dialect.encoder(dialect.request(ASK))
    encoder.begin("tiny")
    encoder.piece(pieces(response("Hel"))[0])

    error, failed = events(encoder.failed(exc))

    assert EVENT.validate_python(error).message == "Gone."
    assert error["error"]["message"] == "Gone."  # what makes the clients raise
    answered = EVENT.validate_python(failed).response
    assert (answered.status, answered.error.code) == ("failed", code)
    with pytest.raises(NotKeptError):
        dialect.kept(answered.id)


# --- conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_goes_on(stream: bool, dialect: Responses) -> None:
    first = response("I add.", call())
    if stream:
        answered = streamed(first, dialect=dialect)[-1]["response"]
    else:
        answered = dialect.answer(first, dialect.request(ASK | {"instructions": "Old."}))
    result = {"type": "function_call_output", "call_id": "call_1", "output": "2"}

    asked = dialect.request(
        {"previous_response_id": answered["id"], "instructions": "New.", "input": [result]}
    )
    second = dialect.answer(response("Two."), asked)
    third = dialect.request({"previous_response_id": second["id"], "input": "Sure?"})

    function = {"name": "add", "arguments": '{"x": 1}'}
    made = {"id": "call_1", "type": "function", "function": function}
    said = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "I add.", "tool_calls": [made]},
        {"role": "tool", "content": "2", "tool_call_id": "call_1", "name": "add"},
    ]
    assert messages(asked) == [{"role": "system", "content": "New."}, *said]
    assert messages(third) == [
        *said,
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Sure?"},
    ]
    assert second["previous_response_id"] == answered["id"]
    assert dialect.kept(str(second["id"])) == second


def test_what_is_not_to_be_kept_is_not(dialect: Responses) -> None:
    answered = dialect.answer(response("a"), dialect.request(ASK | {"store": False}))

    assert answered["store"] is False
    with pytest.raises(NotKeptError):
        dialect.kept(str(answered["id"]))


def test_what_is_forgotten_is_not_there(dialect: Responses) -> None:
    answered = dialect.answer(response("a"), dialect.request(ASK))
    gone = str(answered["id"])

    assert dialect.forget(gone) == {"id": gone, "object": "response", "deleted": True}

    with pytest.raises(NotKeptError) as caught:
        dialect.kept(gone)
    assert dialect.error(caught.value)[0] == 404
    with pytest.raises(NotKeptError) as caught:
        dialect.request(ASK | {"previous_response_id": gone})
    assert dialect.error(caught.value)[0] == 400


def test_items_may_be_named_by_their_ids(dialect: Responses) -> None:
    answered: Any = dialect.answer(response("I add.", call()), dialect.request(ASK))
    references = [{"type": "item_reference", "id": item["id"]} for item in answered["output"]]

    asked = dialect.request(ASK | {"input": [*references, {"role": "user", "content": "So?"}]})

    assert [each["role"] for each in messages(asked)] == ["assistant", "user"]
    assert messages(asked)[0]["content"] == "I add."


def test_the_oldest_make_room() -> None:
    kept = Conversations(most=3, most_characters=100)

    def add(name: str, characters: int) -> None:
        turn = Turn(role="user", content="x" * characters)
        kept.keep(name, Kept(response={"output": []}, turns=(turn,)))

    for name in "abcd":
        add(name, 10)
    assert [name for name in "abcd" if kept.find(name)] == ["b", "c", "d"]
    add("e", 85)
    assert [name for name in "abcde" if kept.find(name)] == ["d", "e"]
    add("f", 101)
    assert len(kept) == 0
    add("g", 100)
    assert kept.find("g")


def test_other_errors_are_openais(dialect: Responses) -> None:
    status, body = dialect.error(ModelNotFoundError("No.", reference="x"))

    assert status == 404
    assert body["error"]["code"] == "model_not_found"  # type: ignore[index]
