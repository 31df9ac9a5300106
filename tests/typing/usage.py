"""What type checkers must make of the public API; checked by mypy, never run.

``assert_type`` fails the check when a type is another, ``type: ignore`` with a code fails it (mypy
warns of unused ones) when what must be refused is accepted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, assert_type

from pydantic import BaseModel

import runtime
from runtime import (
    AsyncLlamaClient,
    BackendCapabilities,
    BackendStatus,
    EmbeddingResult,
    LlamaClient,
    LLMChatParams,
    LLMClient,
    LLMDelta,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMStreamEvent,
    RoutedModel,
    RoutingClient,
    ServerConfig,
    ServerManager,
    TruncatedEmbeddingResult,
    Usage,
)


class Answer(BaseModel):
    n: int


@dataclass
class Point:
    x: int


class Row(TypedDict):
    a: str


def takes_the_protocol(client: LLMClient) -> str:
    message = LLMMessage(role="user", content="hi")
    reply = client.chat([message], model=client.default_model(), params=LLMChatParams())
    assert_type(reply, LLMResponse)
    return reply.text


def uses_the_client(client: LlamaClient) -> None:
    takes_the_protocol(client)
    assert_type(client.chat("hi"), LLMResponse)
    assert_type(client.chat("hi").usage, Usage | dict[str, int] | None)
    with client.stream_chat("hi") as events:
        for event in events:
            assert_type(event, LLMStreamEvent)
    deltas: Iterator[LLMDelta] = client.stream(LLMRequest(messages=()))
    for delta in deltas:
        assert_type(delta.text_delta, str | None)
    assert_type(client.embed(["a"]), EmbeddingResult)
    assert_type(client.embed(["a"], truncate=True), TruncatedEmbeddingResult)
    assert_type(client.embed(["a"], truncate=True).truncated[0].tokens, int | None)
    assert_type(client.embed(["a"]).vectors, Sequence[Sequence[float]])
    assert_type(client.capabilities(), BackendCapabilities)
    assert_type(client.healthcheck(), BackendStatus)
    assert_type(client.count_tokens("x"), int)
    assert_type(client.count_tokens([], tools=[], params=LLMChatParams()), int)
    assert_type(client.count_tokens(LLMRequest(messages=())), int)
    assert_type(client.server, ServerManager | None)
    assert_type(client.server_snapshot(), Mapping[str, object] | None)
    assert_type(client.describe(), Mapping[str, object])


async def uses_the_async_client(client: AsyncLlamaClient) -> None:
    assert_type(await client.chat("hi"), LLMResponse)
    async with client as entered, entered.stream_chat("hi") as events:
        async for event in events:
            assert_type(event, LLMStreamEvent)
    deltas: AsyncIterator[LLMDelta] = client.stream(LLMRequest(messages=()))
    async for delta in deltas:
        assert_type(delta.text_delta, str | None)
    assert_type(await client.start(), AsyncLlamaClient)
    assert_type((await client.embed(["a"])).vectors, Sequence[Sequence[float]])
    assert_type(await client.capabilities(), BackendCapabilities)
    assert_type(await client.healthcheck(), BackendStatus)
    assert_type(await client.count_tokens("x"), int)
    assert_type(await client.default_model(), str)
    assert_type(client.server, ServerManager | None)
    assert_type(await client.describe(), Mapping[str, object])
    assert_type(await client.parse("hi", Answer), Answer)
    assert_type(await client.parse("hi", int | str, temperature=0.5), int | str)


def parses_what_it_is_given(client: LlamaClient) -> None:
    assert_type(client.parse("hi", Answer), Answer)
    assert_type(client.parse("hi", Point), Point)
    assert_type(client.parse("hi", Row), Row)
    assert_type(client.parse("hi", list[int]), list[int])
    assert_type(client.parse("hi", int | str, temperature=0.5, max_tokens=5), int | str)
    assert_type(client.parse("hi", Literal["a", "b"]), Literal["a", "b"])


def names_are_known() -> None:
    assert_type(runtime.__version__, str)
    LlamaClient("m", ctx_size=512, gpu_layers="all", device="cpu", config=ServerConfig())
    LlamaClient(base_url="http://127.0.0.1:8080", api_key="k")


def routes(client: RoutingClient) -> None:
    takes_the_protocol(client)
    assert_type(client.chat("hi"), LLMResponse)
    with client.stream(LLMRequest(messages=())) as deltas:
        assert_type(deltas.routing, Mapping[str, object] | None)
        for delta in deltas:
            assert_type(delta, LLMDelta)
    for event in client.stream_chat("hi"):
        assert_type(event, LLMStreamEvent)
    assert_type(client.parse("hi", Answer), Answer)
    assert_type(client.embed(["a"]), EmbeddingResult)
    RoutingClient([RoutedModel("m", tags=("fast",)), ServerConfig(), "n"], ctx_size=512)
    RoutingClient(["m"], ctx_sise=512)  # type: ignore[call-arg]
    RoutedModel("m", ("fast",))  # type: ignore[call-arg]


def refuses_what_is_wrong(client: LlamaClient) -> None:
    LlamaClient(ctx_sise=512)  # type: ignore[call-arg]
    LlamaClient(ctx_size="big")  # type: ignore[arg-type]
    LlamaClient(on_truncation="ignore")  # type: ignore[arg-type]
    LlamaClient(fit="drop_newest")  # type: ignore[arg-type]
    LLMMessage("user", "hi")  # type: ignore[call-arg]
    LLMMessage(role="robot", content="hi")  # type: ignore[arg-type]
    client.chat(3)  # type: ignore[arg-type]
    client.chat("hi").text = ""  # type: ignore[misc]


async def refuses_what_is_wrong_likewise(client: AsyncLlamaClient) -> None:
    AsyncLlamaClient(ctx_sise=512)  # type: ignore[call-arg]
    AsyncLlamaClient(on_truncation="ignore")  # type: ignore[arg-type]
    _ = client.chat("hi").text  # type: ignore[attr-defined]
    for _ in client.stream_chat("hi"):  # type: ignore[attr-defined]
        pass
