"""OpenAI's own client on the Responses API of a real gateway."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.engine.conftest import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types.responses import Response

    from tests.gateways import Gateway

pytestmark = [pytest.mark.outside, pytest.mark.engine, pytest.mark.process]

ASK: dict[str, Any] = {"model": "tiny-chat", "input": "Hello there."}
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Person(BaseModel):
    """What structured answers are asked for."""

    name: Literal["Ada", "Bo"]
    age: Literal[30, 31]


@pytest.fixture
def client(gateway_of_tools: Gateway) -> Iterator[openai.OpenAI]:
    with gateway_of_tools.client(api_key=KEY, max_retries=0) as made:
        yield made


def test_a_response(client: openai.OpenAI) -> None:
    answered = client.responses.create(
        **ASK, instructions="Be brief.", max_output_tokens=8, temperature=0.5, top_p=0.9
    )

    assert answered.output_text
    assert answered.status == "incomplete"
    assert answered.incomplete_details
    assert answered.incomplete_details.reason == "max_output_tokens"
    assert answered.usage
    assert answered.usage.output_tokens == 8
    assert (answered.temperature, answered.top_p) == (0.5, 0.9)


def test_input_is_counted_as_it_is_used(client: openai.OpenAI) -> None:
    asked: Any = {**ASK, "instructions": "Be brief.", "tools": [WEATHER]}

    counted = client.responses.input_tokens.count(**asked).input_tokens

    usage = client.responses.create(**asked, max_output_tokens=1).usage
    assert usage
    assert counted == usage.input_tokens


def test_a_streamed_response_is_the_same(client: openai.OpenAI) -> None:
    asked: Any = {**ASK, "max_output_tokens": 12, "extra_body": {"seed": 3}}

    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)

    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_thoughts_are_items_of_their_own(client: openai.OpenAI) -> None:
    grammar = {"grammar": 'root ::= "<think>Hm, well.</think>So."'}

    whole = client.responses.create(**ASK, extra_body=grammar)
    with client.responses.stream(**ASK, extra_body=grammar) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()

    both: list[Any] = [whole, final]
    for answered in both:
        thought = answered.output[0]
        assert thought.type == "reasoning"
        assert thought.content[0].text == "Hm, well."
        assert answered.output_text == "So."
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_the_conversation_goes_on(client: openai.OpenAI, stream: bool) -> None:
    asked: Any = {**ASK, "tools": [WEATHER], "tool_choice": "required"}
    if stream:
        with client.responses.stream(**asked) as events:
            called: Response = events.get_final_response()
    else:
        called = client.responses.create(**asked)

    call = called.output[-1]
    assert call.type == "function_call"
    assert call.name == "weather"
    assert json.loads(call.arguments)["city"] in {"Rome", "Oslo"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}
    kept = client.responses.create(
        model="tiny-chat",
        previous_response_id=called.id,
        input=[result],
        tools=[WEATHER],
        max_output_tokens=8,
        extra_body={"seed": 3},
    )
    said: Any = [
        {"role": "user", "content": "Hello there."},
        *[item.to_dict() for item in called.output],
        result,
    ]
    sent = client.responses.create(
        model="tiny-chat",
        input=said,
        tools=[WEATHER],
        max_output_tokens=8,
        store=False,
        extra_body={"seed": 3},
    )
    assert kept.output_text
    assert kept.output_text == sent.output_text
    assert kept.usage
    assert sent.usage
    assert kept.usage.input_tokens == sent.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_structured_response(client: openai.OpenAI, stream: bool) -> None:
    if stream:
        with client.responses.stream(**ASK, text_format=Person) as events:
            parsed = events.get_final_response().output_parsed
    else:
        parsed = client.responses.parse(**ASK, text_format=Person).output_parsed

    assert isinstance(parsed, Person)


def test_responses_are_kept_until_they_are_forgotten(client: openai.OpenAI) -> None:
    made = client.responses.create(**ASK, max_output_tokens=2)

    assert client.responses.retrieve(made.id).output_text == made.output_text
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match=made.id):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**ASK, previous_response_id=made.id)
    assert caught.value.param == "previous_response_id"


def test_what_a_coding_agent_sends(client: openai.OpenAI) -> None:
    """As Codex: nothing kept, thoughts wanted back, several developers, a cache key."""
    said: Any = [
        {"type": "message", "role": "developer", "content": [text("Obey.")]},
        {"type": "message", "role": "user", "content": [text("<environment_context/>")]},
        {"type": "message", "role": "user", "content": [text("Hello.")]},
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "Sunny."},
    ]
    events = list(
        client.responses.create(
            model="tiny-chat",
            instructions="You are an agent.",
            input=said,
            tools=[WEATHER],
            tool_choice="auto",
            parallel_tool_calls=False,
            reasoning={"effort": "medium", "summary": "auto"},
            store=False,
            stream=True,
            include=["reasoning.encrypted_content"],
            prompt_cache_key="key",
            text={"verbosity": "low"},
            max_output_tokens=8,
        )
    )

    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text


def text(words: str) -> dict[str, str]:
    return {"type": "input_text", "text": words}


@pytest.mark.parametrize(
    ("wrong", "kind", "param"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"input": []}, openai.BadRequestError, None),
        ({"input": "Hello there. " * 900}, openai.BadRequestError, None),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError, "tools[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            openai.BadRequestError,
            "input[0].content[0].type",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_openais(
    client: openai.OpenAI,
    stream: bool,
    wrong: Any,
    kind: type[openai.APIStatusError],
    param: str | None,
) -> None:
    with pytest.raises(kind) as caught:
        client.responses.create(**ASK | wrong, stream=stream)

    assert param in {None, caught.value.param}
    if len(wrong.get("input", "")) > 100:
        assert caught.value.code == "context_length_exceeded"


def test_the_key_is_demanded(gateway_of_tools: Gateway) -> None:
    with (
        gateway_of_tools.client(api_key="wrong", max_retries=0) as wrong,
        pytest.raises(openai.AuthenticationError, match="key"),
    ):
        wrong.responses.create(**ASK)


def test_the_async_client(gateway_of_tools: Gateway) -> None:
    async def talk() -> None:
        url = f"{gateway_of_tools.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            assert (await client.responses.create(**ASK, max_output_tokens=4)).output_text
            stream = await client.responses.create(**ASK, max_output_tokens=4, stream=True)
            assert [event.type async for event in stream][-1] == "response.incomplete"
            messages: Any = [{"role": "user", "content": "Hello there."}]
            asked: Any = {"model": "tiny-chat", "messages": messages, "max_tokens": 4}
            assert (await client.chat.completions.create(**asked)).choices[0].message.content
            chunks = await client.chat.completions.create(**asked, stream=True)
            assert len([chunk async for chunk in chunks]) > 3
            parsed = await client.chat.completions.parse(
                model="tiny-chat", messages=messages, response_format=Person
            )
            assert isinstance(parsed.choices[0].message.parsed, Person)

    asyncio.run(talk())
