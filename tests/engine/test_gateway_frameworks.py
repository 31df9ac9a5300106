"""LangChain, Instructor and pydantic-ai before a real gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import instructor
import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.engine.conftest import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_ai.models import Model

    from tests.gateways import Gateway

pytestmark = [pytest.mark.outside, pytest.mark.engine, pytest.mark.process]

MODEL = "tiny-chat"


class Person(BaseModel):
    """What structured answers are asked for."""

    name: Literal["Ada", "Bo"]
    age: Literal[30, 31]


@tool
def weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


# --- LangChain ------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def langchain(
    request: pytest.FixtureRequest, gateway_of_tools: Gateway, loop: asyncio.Runner
) -> Iterator[ChatOpenAI]:
    with openai.DefaultHttpxClient() as http:  # its own are never closed
        async_http = openai.DefaultAsyncHttpxClient()
        yield ChatOpenAI(
            base_url=f"{gateway_of_tools.url}/v1",
            api_key=SecretStr(KEY),
            model=MODEL,
            max_completion_tokens=100,
            max_retries=0,
            use_responses_api=request.param,
            http_client=http,
            http_async_client=async_http,
        )
        loop.run(async_http.aclose())


def test_langchain_chats_and_streams(langchain: ChatOpenAI, loop: asyncio.Runner) -> None:
    reply = langchain.invoke("Hello there.")
    pieces = list(langchain.stream("Hello there."))

    assert reply.text
    assert reply.usage_metadata
    assert reply.usage_metadata["output_tokens"] > 0
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces)
    assert loop.run(langchain.ainvoke("Hello there.")).text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_structured_answers(langchain: ChatOpenAI, method: Any) -> None:
    person = langchain.with_structured_output(Person, method=method).invoke("Invent a person.")

    assert isinstance(person, Person)


def test_langchain_calls_tools(langchain: ChatOpenAI) -> None:
    agent = langchain.bind_tools([weather])
    said: list[Any] = [HumanMessage("How is the weather?")]
    said.append(agent.invoke(said))
    assert said[-1].tool_calls
    said += [weather.invoke(call) for call in said[-1].tool_calls]

    assert agent.invoke(said).text


def test_langchain_embeds(gateway_of_tools: Gateway) -> None:
    options: dict[str, Any] = {"base_url": f"{gateway_of_tools.url}/v1", "api_key": KEY}
    # Else it counts tokens by a vocabulary that it downloads, and sends their numbers.
    options["check_embedding_ctx_length"] = False
    with openai.DefaultHttpxClient() as http:
        embedder = OpenAIEmbeddings(model=MODEL, http_client=http, **options)
        first, second, again = embedder.embed_documents(["one", "two", "one"])

    assert first == pytest.approx(again, abs=1e-6)
    assert first != pytest.approx(second, abs=1e-3)


def test_langchain_raises_openais_errors(langchain: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tokens"):
        langchain.invoke("Hello there. " * 900)


# --- Instructor -----------------------------------------------------------------------------------

ASK: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 100,
    "response_model": Person,
    "messages": [{"role": "user", "content": "Invent a person."}],
}


@pytest.fixture
def client(gateway_of_tools: Gateway) -> Iterator[openai.OpenAI]:
    with gateway_of_tools.client(api_key=KEY, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"])
def test_instructor(client: openai.OpenAI, mode: str) -> None:
    asking = instructor.from_openai(client, mode=instructor.Mode[mode])

    assert isinstance(asking.chat.completions.create(**ASK), Person)


def test_instructor_streams_what_it_has(client: openai.OpenAI) -> None:
    asking = instructor.from_openai(client, mode=instructor.Mode.TOOLS)

    *parts, last = asking.chat.completions.create_partial(**ASK)

    assert parts
    assert Person.model_validate(last.model_dump()) == Person(name=last.name, age=last.age)


def test_instructor_with_anthropics_client(gateway_of_tools: Gateway) -> None:
    url = gateway_of_tools.url
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        asking = instructor.from_anthropic(client)

        assert isinstance(asking.messages.create(**ASK), Person)


# --- pydantic-ai ----------------------------------------------------------------------------------


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(
    request: pytest.FixtureRequest, gateway_of_tools: Gateway, loop: asyncio.Runner
) -> Iterator[Model]:
    url = f"{gateway_of_tools.url}/v1"
    client = openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)
    provider = OpenAIProvider(openai_client=client)
    yield request.param(MODEL, provider=provider, settings={"max_tokens": 100})
    loop.run(client.close())


def test_pydantic_ai_runs_and_streams(model: Model, loop: asyncio.Runner) -> None:
    agent = Agent(model)

    async def talk() -> tuple[str, list[str]]:
        whole = await agent.run("Hello there.")
        async with agent.run_stream("Hello there.") as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        return whole.output, pieces

    whole, pieces = loop.run(talk())
    assert whole
    assert len(pieces) > 3


@pytest.mark.parametrize("output", [Person, NativeOutput(Person)], ids=["tool", "native"])
def test_pydantic_ai_gets_structured_answers(
    model: Model, loop: asyncio.Runner, output: Any
) -> None:
    assert isinstance(loop.run(Agent(model, output_type=output).run("Hi.")).output, Person)


def test_pydantic_ai_calls_tools(model: Model, loop: asyncio.Runner) -> None:
    agent = Agent(model)
    asked: list[str] = []

    @agent.tool_plain
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """The weather of a city."""
        asked.append(city)
        return "Sunny."

    run = loop.run(agent.run("How is the weather?"))

    parts = [part for message in run.all_messages() for part in message.parts]
    assert run.output
    assert asked
    assert any(isinstance(part, ToolCallPart) for part in parts)
    assert any(isinstance(part, ToolReturnPart) for part in parts)


def test_pydantic_ai_raises_its_errors(model: Model, loop: asyncio.Runner) -> None:
    with pytest.raises(ModelHTTPError) as caught:
        loop.run(Agent(model).run("Hello there. " * 900))
    assert caught.value.status_code == 400
