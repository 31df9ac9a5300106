"""Anthropic's own client before a real gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import pytest
from pydantic import BaseModel

from tests.engine.conftest import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anthropic.types import MessageParam, ToolParam

    from tests.gateways import Gateway

pytestmark = [pytest.mark.outside, pytest.mark.engine, pytest.mark.process]

MODEL = "tiny-chat"
CITY: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: ToolParam = {"name": "weather", "description": "The weather.", "input_schema": CITY}
HELLO: list[MessageParam] = [{"role": "user", "content": "Hello there."}]


class Person(BaseModel):
    """What structured answers are asked for."""

    name: Literal["Ada", "Bo"]
    age: Literal[30, 31]


@pytest.fixture
def claude(gateway_of_tools: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=gateway_of_tools.url, api_key=KEY, max_retries=0) as made:
        yield made


# --- Anthropic's client ---------------------------------------------------------------------------


def test_messages(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model=MODEL,
        max_tokens=8,
        system="Be brief.",
        messages=HELLO,
        extra_body={"temperature": 0.5, "top_k": 20},
    )

    (block,) = message.content
    assert block.type == "text"
    assert block.text
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 8)


def test_messages_are_counted_as_they_are_used(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "messages": HELLO, "system": "Be brief.", "tools": [WEATHER]}

    counted = claude.messages.count_tokens(**asked).input_tokens

    usage = claude.messages.create(**asked, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_streamed_messages_are_the_same(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 12, "messages": HELLO, "extra_body": {"seed": 3}}

    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()

    assert len(pieces) > 3
    (block,) = whole.content
    assert block.type == "text"
    assert "".join(pieces) == block.text
    assert [each.to_dict()["text"] for each in final.content] == [block.text]
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 12)
    assert final.usage.input_tokens > 0


def test_a_stop_sequence_is_told(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 64, "messages": HELLO, "extra_body": {"seed": 3}}

    message = claude.messages.create(**asked, stop_sequences=["zzz", "model"])

    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "model")
    assert "model" not in str(message.content)


def test_thoughts_are_blocks_of_their_own(claude: anthropic.Anthropic) -> None:
    asked: Any = {
        "model": MODEL,
        "max_tokens": 64,
        "messages": HELLO,
        "extra_body": {"grammar": 'root ::= "<think>Hm, well.</think>So."'},
    }

    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()

    messages: list[Any] = [whole, final]
    for message in messages:
        thought, said = message.content
        assert (thought.type, thought.thinking) == ("thinking", "Hm, well.")
        assert (said.type, said.text) == ("text", "So.")


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(
    claude: anthropic.Anthropic, stream: bool
) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 100, "tools": [WEATHER]}
    if stream:
        with claude.messages.stream(**asked, messages=HELLO, tool_choice={"type": "any"}) as events:
            message: Any = events.get_final_message()
    else:
        message = claude.messages.create(**asked, messages=HELLO, tool_choice={"type": "any"})

    assert message.stop_reason == "tool_use"
    call = message.content[-1]
    assert (call.type, call.name) == ("tool_use", "weather")
    assert call.input["city"] in {"Rome", "Oslo"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
    said: Any = [
        *HELLO,
        {"role": "assistant", "content": [block.to_dict() for block in message.content]},
        {"role": "user", "content": [result]},
    ]
    answer = claude.messages.create(**asked | {"max_tokens": 8}, messages=said)
    assert answer.content[0].type == "text"


def test_a_structured_message(claude: anthropic.Anthropic) -> None:
    message = claude.messages.parse(
        model=MODEL, max_tokens=200, messages=HELLO, output_format=Person
    )

    assert isinstance(message.parsed_output, Person)


def test_what_a_coding_agent_sends(claude: anthropic.Anthropic) -> None:
    """As Claude Code: blocks to be cached, many tools, betas, a budget for thoughts."""
    cached = {"type": "ephemeral"}
    tools = [
        {
            **WEATHER,
            "name": f"mcp__a_server_whose_name_is_long__and_its_tool_with_a_longer_one_{number}",
            "input_schema": {**CITY, "$schema": "https://json-schema.org/draft/2020-12/schema"},
        }
        for number in range(3)
    ]
    billing = "x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli; cch={};"
    said: Any = [{"type": "text", "text": "Hello there.", "cache_control": cached}]

    def ask(number: int) -> Any:
        system: Any = [
            {"type": "text", "text": billing.format(number)},
            {"type": "text", "text": "You are an agent.", "cache_control": cached},
        ]
        with claude.beta.messages.stream(
            model=MODEL,
            max_tokens=32000,
            system=system,
            messages=[{"role": "user", "content": said}],
            tools=tools,  # type: ignore[arg-type]
            tool_choice={"type": "none"},
            thinking={"type": "enabled", "budget_tokens": 1024},
            metadata={"user_id": "user_1"},
            betas=["interleaved-thinking-2025-05-14", "context-management-2025-06-27"],
            context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
            stop_sequences=["a"],
        ) as stream:
            return stream.get_final_message()

    ask(1)
    usage = ask(2).usage

    assert usage.cache_read_input_tokens
    assert usage.input_tokens <= 2, "what differs with every request was told to the model"


@pytest.mark.parametrize(
    ("wrong", "kind", "says"),
    [
        ({"model": "gpt-9"}, anthropic.NotFoundError, "gpt-9"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
            "messages[0].content[0].type",
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            anthropic.BadRequestError,
            "tools[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": "Hello there. " * 600}]},
            anthropic.BadRequestError,
            "prompt is too long",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_anthropics(
    claude: anthropic.Anthropic,
    stream: bool,
    wrong: Any,
    kind: type[anthropic.APIStatusError],
    says: str,
) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 8, "messages": HELLO}

    with pytest.raises(kind) as caught:
        claude.messages.create(**asked | wrong, stream=stream)

    body: Any = caught.value.body
    assert body["type"] == "error"
    assert says in body["error"]["message"]


def test_the_key_is_demanded(gateway_of_tools: Gateway) -> None:
    wrong = anthropic.Anthropic(base_url=gateway_of_tools.url, api_key="wrong", max_retries=0)

    with wrong, pytest.raises(anthropic.AuthenticationError) as caught:
        wrong.messages.create(model=MODEL, max_tokens=8, messages=HELLO)

    body: Any = caught.value.body
    assert body["error"]["type"] == "authentication_error"


async def async_messages(gateway_of_tools: Gateway) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 8, "messages": HELLO}
    async with anthropic.AsyncAnthropic(base_url=gateway_of_tools.url, api_key=KEY) as client:
        message = await client.messages.create(**asked)
        assert message.content
        async with client.messages.stream(**asked) as stream:
            assert [piece async for piece in stream.text_stream]


def test_the_async_client_of_anthropic(gateway_of_tools: Gateway) -> None:
    asyncio.run(async_messages(gateway_of_tools))
