"""LlamaClient fulfils the contract: it can take the place of any client written against it."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import pytest

from runtime import (
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
    RoutingClient,
)
from tests.fakes.openai_server import FakeServer

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = sorted(
    name
    for name in vars(LLMClient)
    if not name.startswith("_") or name in {"__enter__", "__exit__"}
)


@pytest.fixture(scope="module")
def client() -> Iterator[LlamaClient]:
    with FakeServer() as server, LlamaClient(base_url=server.url) as made:
        yield made


def test_it_is_an_llm_client(client: LlamaClient) -> None:
    assert isinstance(client, LLMClient)
    assert METHODS == [
        "__enter__", "__exit__", "capabilities", "chat", "close", "config_snapshot",
        "default_model", "describe", "generate", "server_snapshot", "stream", "stream_chat",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [LlamaClient, RoutingClient])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_what_the_protocol_passes(name: str, kind: type) -> None:
    """The same names, in the same order, of the same kind; more may be left out, never less."""
    wanted = inspect.signature(getattr(LLMClient, name)).parameters
    offered = inspect.signature(getattr(kind, name)).parameters
    assert [(each.name, each.kind) for each in offered.values()] == [
        (each.name, each.kind) for each in wanted.values()
    ]


def test_the_constructor_takes_what_the_design_names() -> None:
    parameters = inspect.signature(LlamaClient).parameters
    assert list(parameters) == [
        "model", "config", "base_url", "api_key", "name", "embedding_model", "offline",
        "request_timeout_s", "first_token_timeout_s", "stall_timeout_s", "max_retries", "max_queue",
        "on_truncation", "enforcement", "bounds", "fit", "progress", "use_gateway",
        "server_options",
    ]  # fmt: skip
    assert parameters["model"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    kinds = {parameter.kind for name, parameter in parameters.items() if name != "model"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    defaults = {name: parameters[name].default for name in ("name", "max_retries", "on_truncation")}
    assert defaults == {"name": "llama-local", "max_retries": 2, "on_truncation": "error"}


def test_every_method_answers_in_the_contracts_types(client: LlamaClient) -> None:
    message = LLMMessage(role="user", content="hi")
    model = client.default_model()
    assert type(model) is str
    assert type(client.chat([message], model=model, params=LLMChatParams())) is LLMResponse
    events = list(client.stream_chat([message], model=model, params=LLMChatParams()))
    assert {type(event) for event in events} == {LLMStreamEvent}
    assert type(client.generate(LLMRequest(messages=[message]))) is LLMResponse
    assert {type(each) for each in client.stream(LLMRequest(messages=[message]))} == {LLMDelta}
    assert type(client.capabilities()) is BackendCapabilities
    assert type(client.healthcheck()) is BackendStatus
    assert type(client.embed(["x"])) is EmbeddingResult
    assert type(client.count_tokens("x")) is int
    assert client.__enter__() is client


def test_the_description_has_its_keys_and_is_json(client: LlamaClient) -> None:
    described: Any = client.describe()
    assert list(described) == [
        "client_class", "default_model", "backend", "capabilities", "server", "gateway", "queue",
        "counters",
    ]  # fmt: skip
    assert json.loads(json.dumps(described)) == described
    assert {
        "name", "kind", "default_model", "base_url", "config_hash", "max_retries",
        "model_patterns", "model", "context_window",
    } <= set(described["backend"])  # fmt: skip
