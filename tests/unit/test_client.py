"""LlamaClient attached to a server on loopback: what it asks, answers, and says of itself."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from pydantic import BaseModel, field_validator

from runtime import (
    ConfigError,
    CutOffError,
    LlamaClient,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMChatParams,
    LLMDelta,
    LLMInvalidRequestError,
    LLMMessage,
    LLMRequest,
    LLMStreamEvent,
    ModelNotFoundError,
    SchemaViolationError,
    ServerConfig,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
    UnclosableAnswerError,
    Usage,
)
from runtime.client._options import ServerOptions
from runtime.client._sources import recommended_sampling
from tests.fakes.openai_server import (
    CONTEXT,
    MODEL,
    TIMINGS,
    FakeServer,
    event,
    events_of,
    piece,
    refuses,
    says,
    sends,
    streams,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

USAGE = Usage(prompt_tokens=32, completion_tokens=3, total_tokens=35)
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}},
    "required": ["n"],
}
TOOL = ToolSpec(
    name="add",
    description="Adds.",
    input_schema={"type": "object", "required": ["x"]},
    output_schema={},
)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[LlamaClient]:
    with LlamaClient(base_url=server.url) as made:
        yield made


def ask(text: str = "hi", **values: Any) -> LLMRequest:
    return LLMRequest(messages=[LLMMessage(role="user", content=text)], **values)


# --- answers ----------------------------------------------------------------------------------


def test_a_chat_is_answered_with_everything_the_contract_has(
    client: LlamaClient, server: FakeServer
) -> None:
    message = LLMMessage(role="user", content="hi")
    reply = client.chat([message], model=client.default_model(), params=LLMChatParams())

    assert (reply.text, reply.finish_reason, reply.usage) == ("I'm glad", "stop", USAGE)
    assert (reply.model, reply.provider, reply.tool_calls) == (MODEL, "llama-local", ())
    assert reply.latency_ms is not None
    assert 0 <= reply.latency_ms < 5000
    assert reply.raw is not None
    sent = server.chats[-1].body
    assert reply.raw == {
        "seed": sent["seed"],
        "max_tokens": CONTEXT,
        "attempts": 1,
        "resends": 0,
        "timings": TIMINGS,
        "cache": {"reused": 31, "processed": 1},
    }
    assert sent["max_tokens"] == CONTEXT
    assert reply.raw_output is not None
    assert reply.raw_output["object"] == "chat.completion"
    provenance = reply.provenance
    assert provenance is not None
    assert provenance.base_url == server.url
    assert (provenance.backend_name, provenance.backend_kind) == ("llama-local", "llama-server")
    assert provenance.model_id == MODEL
    assert provenance.started_at <= provenance.completed_at
    assert provenance.config_hash == client.config_snapshot()["config_hash"]


def test_model_and_params_may_be_left_out_and_the_prompt_be_a_string(
    client: LlamaClient, server: FakeServer
) -> None:
    assert client.chat("hi").text == "I'm glad"
    assert server.chats[-1].body["messages"] == [{"role": "user", "content": "hi"}]
    assert server.chats[-1].body["model"] == MODEL


def test_a_chat_stream_is_deltas_and_one_completed_event(client: LlamaClient) -> None:
    *deltas, last = client.stream_chat("hi")
    assert deltas == [LLMStreamEvent(kind="delta", delta_text=t) for t in ("I", "'m", " glad")]
    assert last.kind == "completed"
    assert last.response is not None
    assert (last.response.text, last.response.usage) == ("I'm glad", USAGE)


def test_a_stream_is_deltas_and_the_token_counts(client: LlamaClient) -> None:
    assert list(client.stream(ask())) == [
        LLMDelta(text_delta="I"),
        LLMDelta(text_delta="'m"),
        LLMDelta(text_delta=" glad"),
        LLMDelta(usage_delta=USAGE),
    ]


def test_a_piece_comes_out_before_the_next_one_came_in(server: FakeServer) -> None:
    """Real streaming: the server waits for the test between two pieces."""
    heard = threading.Event()

    def one_then_wait(peer: Any, request: Any) -> None:
        chunks = events_of(["first", "second"])
        streams(*chunks[:2], end=False)(peer, request)
        assert heard.wait(10)
        for chunk in chunks[2:]:
            peer.chunk(chunk)
        peer.end_stream()

    server.will(one_then_wait)
    with LlamaClient(base_url=server.url) as client:
        events = client.stream_chat("hi")
        assert next(events).delta_text == "first"
        heard.set()
        assert [each.delta_text for each in events] == ["second", None]


def test_every_request_closes_its_connection_and_carries_the_key() -> None:
    with (
        FakeServer(api_key="k3y") as server,
        LlamaClient(base_url=server.url, api_key="k3y") as client,
    ):
        client.chat("hi")
        list(client.stream_chat("hi"))
        client.embed(["x"])
    assert {each.headers["connection"] for each in server.requests} == {"close"}
    assert {each.headers["authorization"] for each in server.requests} == {"Bearer k3y"}
    assert {each.headers["host"] for each in server.requests} == {server.url.split("//")[1]}


def test_a_given_seed_is_sent_and_a_missing_one_is_chosen_anew(
    client: LlamaClient, server: FakeServer
) -> None:
    given = client.chat("hi", params=LLMChatParams(provider_options={"seed": 42}))
    assert given.raw is not None
    assert given.raw["seed"] == server.chats[-1].body["seed"] == 42
    chosen = {client.chat("hi").raw["seed"] for _ in range(5)}  # type: ignore[index]
    assert len(chosen) == 5


def test_proxy_variables_do_not_touch_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with LlamaClient(base_url=server.url) as client:
        assert client.chat("hi").text == "I'm glad"


def test_an_answer_that_was_not_streamed_is_the_same_to_the_caller() -> None:
    """Servers other than llama.cpp's are asked for the whole answer at once."""
    with FakeServer(llama_cpp=False) as server, LlamaClient(base_url=server.url) as client:
        reply = client.chat("hi")
        assert "stream" not in server.chats[-1].body
        assert (reply.text, reply.finish_reason, reply.usage) == ("I'm glad", "stop", USAGE)
        assert reply.provenance is not None
        assert reply.provenance.backend_kind == "openai"
        assert [each.kind for each in client.stream_chat("hi")] == ["delta"] * 3 + ["completed"]


def test_a_server_that_cannot_stream_is_streamed_in_one_piece() -> None:
    def whole(peer: Any, request: Any) -> None:
        says("all at once")(peer, replace(request, body={}))

    with FakeServer(llama_cpp=False) as server, LlamaClient(base_url=server.url) as client:
        server.will(whole)
        first, last = client.stream_chat("hi")
    assert first.delta_text == "all at once"
    assert last.response is not None
    assert last.response.text == "all at once"


def test_a_continued_message_is_not_repeated() -> None:
    said = [LLMMessage(role="user", content="count"), LLMMessage(role="assistant", content="one ")]
    with FakeServer(llama_cpp=False) as server, LlamaClient(base_url=server.url) as client:
        server.will(says("one two"), says("two"))
        assert client.chat(said).text == "two"
        assert [e.delta_text for e in client.stream_chat(said)] == ["two", None]


def test_thinking_is_kept_apart(client: LlamaClient, server: FakeServer) -> None:
    thought = event(piece({"reasoning_content": "hmm"}))
    server.will(streams(thought, *events_of(["42"])))
    reply = client.chat("hi")
    assert reply.text == "42"
    assert reply.raw is not None
    assert reply.raw["reasoning"] == "hmm"


@pytest.mark.parametrize("model", ["no-such-model", "fake"])
def test_an_unknown_model_is_refused_by_name(client: LlamaClient, model: str) -> None:
    """llama.cpp itself would answer with the model it has."""
    for call in (
        lambda: client.chat("hi", model=model),
        lambda: client.stream_chat("hi", model=model),
        lambda: client.generate(ask(model=model)),
        lambda: client.embed(["x"], model=model),
    ):
        with pytest.raises(ModelNotFoundError, match=model) as caught:
            call()
        assert caught.value.nearest == (MODEL,)
        assert MODEL in str(caught.value.hint)


def test_a_model_that_was_loaded_since_is_found(client: LlamaClient, server: FakeServer) -> None:
    server.listed.append("late")
    client.chat("hi", model="late")
    assert server.chats[-1].body["model"] == "late"
    assert client.default_model() == MODEL


def test_many_threads_share_one_client(client: LlamaClient, server: FakeServer) -> None:
    def one(number: int) -> str:
        server.will(says("x"))
        if number % 2:
            return client.chat(str(number)).text
        return "".join(each.delta_text or "" for each in client.stream_chat(str(number)))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(200))) == ["x"] * 200
    asked = {each.body["messages"][0]["content"] for each in server.chats}
    assert asked >= {str(number) for number in range(200)}


# --- structured answers -----------------------------------------------------------------------


def test_a_structured_answer_is_enforced_by_grammar_and_validated(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(says('{"n":', " 3}"))
    reply = client.chat("hi", params=LLMChatParams(response_schema=SCHEMA))
    assert json.loads(reply.text) == {"n": 3}
    assert reply.raw is not None
    assert reply.raw["structured_output"] == {
        "attempts": 1,
        "enforcement": "llguidance",
        "validated_only": None,
        "closed": None,
    }
    assert server.chats[-1].body["grammar"].startswith("%llguidance {}\nstart: %json {")
    assert "response_format" not in server.chats[-1].body


@pytest.mark.parametrize("llguidance", ["refused", "ignored"])
def test_an_engine_without_llguidance_is_given_gbnf(
    llguidance: Literal["refused", "ignored"],
) -> None:
    with FakeServer(llguidance=llguidance) as server, LlamaClient(base_url=server.url) as client:
        server.will(says('{"n": 3}'))
        client.generate(ask(response_schema=SCHEMA))
        grammar = server.chats[-1].body["grammar"]
    assert str(grammar).startswith("root ::= ")


def test_an_answer_that_violates_its_schema_is_asked_for_again(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(says('{"n": 10}'), says("no"), says('{"n": 9}'))
    params = LLMChatParams(response_schema=SCHEMA, provider_options={"seed": 1})
    reply = client.chat("hi", params=params)
    assert json.loads(reply.text) == {"n": 9}
    seeds = [each.body["seed"] for each in server.chats[-3:]]
    assert seeds[0] == 1
    assert len(set(seeds)) == 3
    assert reply.raw is not None
    assert (reply.raw["attempts"], reply.raw["seed"]) == (3, seeds[2])
    first, blame, told = server.chats[-1].body["messages"]
    assert (first["content"], blame) == ("hi", {"role": "assistant", "content": "no"})
    assert told["role"] == "user"
    assert "Expecting value" in told["content"]
    assert (
        "at /n: 10 is greater than the maximum" in server.chats[-2].body["messages"][2]["content"]
    )


def test_an_answer_that_keeps_violating_its_schema_is_never_a_success(
    client: LlamaClient, server: FakeServer
) -> None:
    before = len(server.chats)
    server.will(*[says('{"n": 10}')] * 3)
    with pytest.raises(SchemaViolationError) as caught:
        client.generate(ask(response_schema=SCHEMA))
    assert (caught.value.pointer, caught.value.partial_text) == ("/n", '{"n": 10}')
    assert "maximum" in caught.value.reason
    assert len(server.chats) - before == 3


def test_without_chance_the_blame_alone_makes_a_difference(
    client: LlamaClient, server: FakeServer
) -> None:
    """At temperature 0 the same words would be repeated, were the prompt the same."""
    server.will(says("{}"), says('{"n": 1}'))
    assert client.generate(ask(response_schema=SCHEMA, temperature=0)).text == '{"n": 1}'
    before = len(server.chats)
    server.will(says('"' + "x" * 5000 + '"'))
    with pytest.raises(SchemaViolationError):
        client.generate(ask(response_schema=SCHEMA, temperature=0))
    assert len(server.chats) - before == 1


def test_where_the_blame_finds_no_room_the_violation_is_told(
    client: LlamaClient, server: FakeServer
) -> None:
    full = {"type": "exceed_context_size_error", "n_prompt_tokens": 300, "n_ctx": 256}
    server.will(says("{}"), refuses(400, {"error": {"code": 400, "message": "m", **full}}))
    with pytest.raises(SchemaViolationError, match="required"):
        client.generate(ask(response_schema=SCHEMA))


@pytest.mark.parametrize("grammar", ["", 3, "%llguidance {}\nstart: nope"])
def test_a_grammar_that_cannot_be_kept_to_is_refused(
    client: LlamaClient, server: FakeServer, grammar: object
) -> None:
    before = len(server.requests)
    with pytest.raises(LLMInvalidRequestError, match="grammar"):
        client.generate(ask(provider_options={"grammar": grammar}))
    assert len(server.requests) == before


def test_a_grammar_of_ones_own_is_passed_on(client: LlamaClient, server: FakeServer) -> None:
    for grammar in ('root ::= "yes"', '%llguidance {}\nstart: "yes"'):
        client.generate(ask(provider_options={"grammar": grammar}))
        assert server.chats[-1].body["grammar"] == grammar


def test_a_grammar_that_the_engine_does_not_take_is_a_missing_capability() -> None:
    lark: dict[str, object] = {"grammar": '%llguidance {}\nstart: "yes"'}
    with (
        FakeServer(llguidance="refused") as server,
        LlamaClient(base_url=server.url) as client,
        pytest.raises(LLMCapabilityError, match="no llguidance grammars"),
    ):
        client.generate(ask(provider_options=lark))


def test_a_streamed_violation_is_an_error_at_the_end(
    client: LlamaClient, server: FakeServer
) -> None:
    before = len(server.chats)
    server.will(says('{"n":', "10}"))
    with pytest.raises(SchemaViolationError):
        list(client.stream(ask(response_schema=SCHEMA)))
    assert len(server.chats) - before == 1
    events = client.stream_chat("hi", params=LLMChatParams(response_schema=SCHEMA))
    server.will(says('{"n":', "10}"))
    assert next(events).delta_text == '{"n":'
    assert next(events).delta_text == "10}"
    with pytest.raises(SchemaViolationError):
        next(events)


@pytest.mark.parametrize("text", ['{"n": 1', '{"n"'])
def test_json_cut_by_the_budget_is_an_error_with_what_there_is(
    client: LlamaClient, server: FakeServer, text: str
) -> None:
    before = len(server.chats)
    server.will(says(text, reason="length"))
    with pytest.raises(CutOffError, match="cut off") as caught:
        client.generate(ask(response_schema=SCHEMA))
    assert caught.value.partial_text == text
    assert "max_tokens" in str(caught.value.hint)
    assert len(server.chats) - before == 1


def test_a_number_cut_by_the_budget_may_not_be_the_whole_number(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(says("12", reason="length"))
    with pytest.raises(CutOffError, match="cut off"):
        client.generate(ask(response_schema={"type": "integer"}))


def test_json_cut_by_the_budget_can_be_closed(server: FakeServer) -> None:
    with LlamaClient(base_url=server.url, on_truncation="close") as client:
        server.will(says('{"n": 3, "why', reason="length"))
        reply = client.generate(ask(response_schema=SCHEMA))
        assert (reply.text, reply.finish_reason) == ('{"n": 3, "why": null}', "length")
        assert reply.raw is not None
        noted = reply.raw["structured_output"]
        assert isinstance(noted, dict)
        assert noted["closed"] == {"start": 13, "text": '": null}', "dropped": 0}
        server.will(says('{"n": 3', "33", reason="length"))
        assert client.generate(ask(response_schema=SCHEMA)).text == '{"n": 0}'
        server.will(says('{"n": 3', reason="length"))
        error: dict[str, object] = {"on_truncation": "error"}
        with pytest.raises(LLMBadResponseError, match="cut off"):
            client.generate(ask(response_schema=SCHEMA, provider_options=error))
        assert "on_truncation" not in server.chats[-1].body
        server.will(says('{"n": ', reason="length"))
        with pytest.raises(UnclosableAnswerError) as caught:
            client.generate(ask(response_schema={"type": "integer", "not": {"type": "number"}}))
        assert caught.value.partial_text == '{"n": '


def test_after_a_key_that_occurs_twice_no_key_may_be_invented(server: FakeServer) -> None:
    """The same grammar would let it happen again."""
    document: dict[str, object] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with LlamaClient(base_url=server.url) as client:
        before = len(server.chats)
        server.will(says('{"b": 1, "b": 2}'), says('{"a": 1}'))
        reply = client.generate(ask(response_schema=document, temperature=1))
        assert reply.text == '{"a": 1}'
        first, second = server.chats[before:]
    assert "twice" in json.dumps(second.body["messages"])
    assert first.body["seed"] != second.body["seed"]


def test_a_closing_that_fills_the_context_is_refused(server: FakeServer) -> None:
    long = {"type": "string", "minLength": 100_000}
    with LlamaClient(base_url=server.url, on_truncation="close") as client:
        server.will(says('"a', reason="length"))
        with pytest.raises(UnclosableAnswerError, match="adds 100000 characters") as caught:
            client.generate(ask(response_schema=long))
    assert caught.value.partial_text == '"a'
    assert "ctx_size" in str(caught.value.hint)


def test_a_stream_that_is_closed_delivers_the_closing_too(server: FakeServer) -> None:
    with LlamaClient(base_url=server.url, on_truncation="close") as client:
        server.will(says('{"n":', " 3", reason="length"))
        params = LLMChatParams(response_schema=SCHEMA)
        *deltas, last = client.stream_chat("hi", params=params)
        assert last.response is not None
        assert last.response.text == '{"n": 3}' == "".join(d.delta_text or "" for d in deltas)
        server.will(says('{"n":', " 333", reason="length"))
        with pytest.raises(UnclosableAnswerError, match="do not stream"):
            list(client.stream_chat("hi", params=params))


def test_json_that_ended_with_the_budget_is_whole(client: LlamaClient, server: FakeServer) -> None:
    server.will(says('{"n": 1}', reason="length"))
    reply = client.generate(ask(response_schema=SCHEMA))
    assert (reply.text, reply.finish_reason) == ('{"n": 1}', "length")


def test_an_invalid_schema_is_refused_before_any_request(
    client: LlamaClient, server: FakeServer
) -> None:
    before = len(server.requests)
    with pytest.raises(LLMInvalidRequestError, match="/type"):
        client.generate(ask(response_schema={"type": "thing"}))
    assert len(server.requests) == before


@dataclass
class Point:
    x: int
    y: int = 0


class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("odd")
        return value


def test_parse_answers_with_an_instance(client: LlamaClient, server: FakeServer) -> None:
    server.will(says('{"x": 1}'), says('{"n": 2}'), says("[1, 2]"), says('"a"'))
    assert client.parse("hi", Point) == Point(1, 0)
    assert client.parse("hi", Even).n == 2
    assert client.parse("hi", list[int], max_tokens=5) == [1, 2]
    assert server.chats[-1].body["max_tokens"] == 5
    assert client.parse("hi", str | int) == "a"


def test_parse_refuses_what_only_python_can_tell_is_wrong(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(says('{"n": 3}'))
    with pytest.raises(SchemaViolationError, match="odd") as caught:
        client.parse("hi", Even)
    assert caught.value.pointer == "/n"


def test_parse_refuses_a_type_without_a_schema(client: LlamaClient) -> None:
    with pytest.raises(LLMInvalidRequestError, match="no JSON Schema"):
        client.parse("hi", FakeServer)


# --- tools ------------------------------------------------------------------------------------


def tool_answer(*pieces: dict[str, Any]) -> Any:
    chunks = [event(piece({"tool_calls": [each]})) for each in pieces]
    return streams(*chunks, *events_of([], reason="tool_calls"))


@pytest.fixture
def tool_server() -> Iterator[FakeServer]:
    with FakeServer(tools=True) as running:
        yield running


def test_tool_calls_are_streamed_and_collected(tool_server: FakeServer) -> None:
    pieces = (
        {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"x"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    )
    tool_server.will(tool_answer(*pieces), tool_answer(*pieces))
    with LlamaClient(base_url=tool_server.url) as client:
        assert client.capabilities().tool_calling == "native"
        reply = client.generate(ask(tools=[TOOL]))
        assert reply.tool_calls == (ToolCall(name="add", arguments_json='{"x": 1}', call_id="c1"),)
        assert (reply.text, reply.finish_reason) == ("", "tool_calls")
        deltas = [each.tool_call_delta for each in client.stream(ask(tools=[TOOL]))]
    assert [each for each in deltas if each] == [
        ToolCallDelta(call_id="c1", name="add", arguments_json_delta='{"x"'),
        ToolCallDelta(call_id="c1", arguments_json_delta=": 1}"),
    ]


def test_an_answer_that_calls_a_tool_says_so_as_its_reason(tool_server: FakeServer) -> None:
    """Some servers call it a stop."""
    call = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"x": 1}'}}
    tool_server.will(streams(event(piece({"tool_calls": [call]})), *events_of([], reason="stop")))
    with LlamaClient(base_url=tool_server.url) as client:
        assert client.generate(ask(tools=[TOOL])).finish_reason == "tool_calls"


def test_wrong_tool_calls_are_asked_for_again_and_never_a_success(tool_server: FakeServer) -> None:
    wrong = {"index": 0, "id": "c", "function": {"name": "add", "arguments": "{}"}}
    right = {"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"x": 1}'}}
    with LlamaClient(base_url=tool_server.url) as client:
        tool_server.will(tool_answer(wrong), tool_answer(right))
        assert client.generate(ask(tools=[TOOL])).tool_calls[0].arguments_json == '{"x": 1}'
        tool_server.will(*[tool_answer(wrong)] * 3)
        with pytest.raises(SchemaViolationError, match="'add'"):
            client.generate(ask(tools=[TOOL]))
        required = {"tool_choice": "required"}
        tool_server.will(*[says("The sum is 3.")] * 3)
        with pytest.raises(LLMBadResponseError, match="answered with text"):
            client.generate(ask(tools=[TOOL], provider_options=required))


def test_a_tool_call_cut_by_the_budget_is_named_so(tool_server: FakeServer) -> None:
    cut = {"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"x'}}
    tool_server.will(streams(event(piece({"tool_calls": [cut]})), *events_of([], reason="length")))
    with (
        LlamaClient(base_url=tool_server.url) as client,
        pytest.raises(CutOffError, match="call to 'add' was cut off") as caught,
    ):
        client.generate(ask(tools=[TOOL]))
    assert caught.value.partial_text == '{"x'


def test_tools_for_a_model_that_knows_none_are_told_and_enforced(
    client: LlamaClient, server: FakeServer
) -> None:
    """The engine would ignore them silently, so it is not given any."""
    assert client.capabilities().tool_calling == "best_effort"
    required: dict[str, object] = {"tool_choice": "required"}
    server.will(says('{"name": "add", "argu', 'ments": {"x"', ': "}"}}'))
    reply = client.generate(ask(tools=[TOOL], provider_options=required))
    assert [(call.name, call.arguments_json) for call in reply.tool_calls] == [
        ("add", '{"x": "}"}')
    ]
    assert (reply.text, reply.finish_reason) == ("", "tool_calls")
    sent = server.chats[-1].body
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & sent.keys()
    assert '"name": "add"' in sent["messages"][0]["content"]
    assert sent["grammar"].startswith("%llguidance {}\nstart: call\n")
    server.will(says('{"name": "add", "argu', 'ments": {"x"', ": 1}}"))
    deltas = list(client.stream(ask(tools=[TOOL])))
    calls = [each.tool_call_delta for each in deltas if each.tool_call_delta]
    assert [(call.name, call.arguments_json_delta) for call in calls] == [
        ("add", None),
        (None, '{"x"'),
        (None, ": 1}"),
    ]
    assert len({call.call_id for call in calls}) == 1


def test_told_tools_leave_plain_text_alone(client: LlamaClient, server: FakeServer) -> None:
    server.will(says("It", " is {x}."), says("No."), says("{1, 2}", " is a set"))
    reply = client.generate(ask(tools=[TOOL]))
    assert (reply.text, reply.tool_calls, reply.finish_reason) == ("It is {x}.", (), "stop")
    none: dict[str, object] = {"tool_choice": "none"}
    assert client.generate(ask(tools=[TOOL], provider_options=none)).text == "No."
    sent = server.chats[-1].body
    assert "grammar" not in sent
    assert sent["messages"] == [{"role": "user", "content": "hi"}]
    assert client.generate(ask(tools=[TOOL])).text == "{1, 2} is a set"


def test_several_told_calls_come_where_asked_for(client: LlamaClient, server: FakeServer) -> None:
    line = '{"name": "add", "arguments": {"x": 1}}'
    server.will(says(f"{line}\n{line}"))
    several: dict[str, object] = {"parallel_tool_calls": True}
    reply = client.generate(ask(tools=[TOOL], provider_options=several))
    assert [call.arguments_json for call in reply.tool_calls] == ['{"x": 1}'] * 2
    assert len({call.call_id for call in reply.tool_calls}) == 2
    assert 'call ("\\n" call){0,7}' in server.chats[-1].body["grammar"]


def test_told_calls_are_validated_and_asked_for_again(
    client: LlamaClient, server: FakeServer
) -> None:
    wrong, right = '{"name": "add", "arguments": {}}', '{"name": "add", "arguments": {"x": 2}}'
    server.will(says(wrong), says("no"), says(right))
    required: dict[str, object] = {"tool_choice": "add"}
    reply = client.generate(ask(tools=[TOOL], provider_options=required))
    assert reply.tool_calls[0].arguments_json == '{"x": 2}'
    server.will(says('{"na', reason="length"))
    with pytest.raises(LLMBadResponseError, match="The tool call was cut off") as caught:
        client.generate(ask(tools=[TOOL], provider_options=required))
    assert caught.value.partial_text == '{"na'


def test_a_call_that_nobody_offered_is_a_bad_response(
    client: LlamaClient, server: FakeServer
) -> None:
    made = {"index": 0, "id": "c", "function": {"name": "add", "arguments": "{}"}}
    server.will(*[tool_answer(made)] * 3)
    with pytest.raises(LLMBadResponseError, match="offered no tools"):
        client.chat("hi")


# --- embeddings and counting ------------------------------------------------------------------


@pytest.mark.parametrize("llama_cpp", [True, False])
def test_embeddings_keep_their_order_over_batches_and_have_unit_length(llama_cpp: bool) -> None:
    texts = [f"text {'x' * number}" for number in range(150)]
    with FakeServer(llama_cpp=llama_cpp) as server, LlamaClient(base_url=server.url) as client:
        result = client.embed(texts)
        single = [client.embed([text]).vectors[0] for text in texts[::50]]
        asked = [each.body["input"] for each in server.requests if "embeddings" in each.path]
    assert [len(batch) for batch in asked[:3]] == [64, 64, 22]
    assert [text for batch in asked[:3] for text in batch] == texts
    assert len(result.vectors) == 150
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in result.vectors)
    assert [result.vectors[number] for number in (0, 50, 100)] == single
    assert result.usage == Usage(prompt_tokens=150, total_tokens=150)
    assert result.model_id == MODEL


def test_a_batch_is_bounded_by_its_length_too(client: LlamaClient, server: FakeServer) -> None:
    client.embed(["x" * 40_000, "y" * 6_000, "z" * 6_000, "y" * 6_000])
    asked = [each.body["input"] for each in server.requests if "embeddings" in each.path]
    assert [len(batch) for batch in asked] == [1, 2, 1]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "texts is empty"),
        ("abc", "texts is str"),
        (None, "texts is NoneType"),
        (["a", ""], r"texts\[1\] is empty"),
        (["a", " \n"], r"texts\[1\] is empty"),
        (["a", 3], r"texts\[1\] is int"),
        (["\ud800"], "cannot be written"),
    ],
)
def test_texts_that_cannot_be_embedded_are_refused(
    client: LlamaClient, server: FakeServer, texts: Any, said: str
) -> None:
    before = len(server.requests)
    with pytest.raises(LLMInvalidRequestError, match=said):
        client.embed(texts)
    assert len(server.requests) == before


def test_an_embedding_model_of_an_attached_server_is_asked_by_name() -> None:
    with FakeServer(listed=[MODEL, "embedder"]) as server:
        with LlamaClient(base_url=server.url, embedding_model="embedder") as client:
            assert client.embed(["x"]).model_id == "embedder"
            client.embed(["x"], model=MODEL)
        asked = [each.body["model"] for each in server.requests if "embeddings" in each.path]
    assert asked == ["embedder", MODEL]


def test_tokens_of_texts_and_of_chats_are_counted_by_the_server(
    client: LlamaClient, server: FakeServer
) -> None:
    assert client.count_tokens("one two three") == 3
    assert client.count_tokens("") == 0
    assert client.count_tokens([LLMMessage(role="user", content="one two")]) == 12
    with pytest.raises(LLMInvalidRequestError, match="messages is empty"):
        client.count_tokens([])


def test_a_server_that_cannot_count_is_named() -> None:
    with FakeServer(llama_cpp=False) as server, LlamaClient(base_url=server.url) as client:
        with pytest.raises(LLMCapabilityError, match="cannot count"):
            client.count_tokens("x")
        with pytest.raises(LLMCapabilityError, match="cannot count"):
            client.count_tokens([LLMMessage(role="user", content="x")])


def test_sampling_is_recommended_by_the_catalogue_alone() -> None:
    assert recommended_sampling("smollm2-135m") == {"temperature": 0.2, "top_p": 0.9}
    assert recommended_sampling("./smollm2-135m.gguf") == {}


# --- what it says of itself -------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_base_url_may_end_with_v1(server: FakeServer, suffix: str) -> None:
    with LlamaClient(base_url=server.url + suffix) as client:
        assert client.chat("hi").text == "I'm glad"
        assert client.config_snapshot()["base_url"] == server.url


def test_a_llama_cpp_server_is_known_by_looking(client: LlamaClient) -> None:
    capabilities = client.capabilities()
    assert (capabilities.streaming, capabilities.vision) == (True, False)
    assert (capabilities.tool_calling, capabilities.json_mode) == (
        "best_effort",
        "native",
    )
    assert capabilities.max_context_tokens == CONTEXT


def test_what_another_server_does_not_tell_is_not_claimed() -> None:
    with FakeServer(llama_cpp=False) as server, LlamaClient(base_url=server.url) as client:
        capabilities = client.capabilities()
    assert (capabilities.tool_calling, capabilities.json_mode) == (
        "best_effort",
        "prompt+validate",
    )
    assert capabilities.max_context_tokens is None


def test_the_first_listed_model_is_the_default_unless_one_is_given() -> None:
    with FakeServer(listed=["a", "b"]) as server:
        with LlamaClient(base_url=server.url) as client:
            assert client.default_model() == "a"
            assert client.config_snapshot()["model_patterns"] == ["a", "b"]
        with LlamaClient("b", base_url=server.url) as client:
            assert client.default_model() == "b"
            client.chat("hi")
            assert server.chats[-1].body["model"] == "b"
        with pytest.raises(ModelNotFoundError, match="'c'"):
            LlamaClient("c", base_url=server.url)
        server.listed.clear()
        with pytest.raises(ModelNotFoundError, match="lists no models"):
            LlamaClient(base_url=server.url)
        with LlamaClient("c", base_url=server.url) as client:
            assert client.default_model() == "c"


def test_the_snapshot_has_what_existing_tools_read_and_no_secret() -> None:
    with (
        FakeServer(api_key="s3cret") as server,
        LlamaClient(base_url=server.url, api_key="s3cret", max_retries=5) as client,
    ):
        snapshot = client.config_snapshot()
        described = client.describe()
        assert client.server_snapshot() is None
        assert client.server is None
        assert snapshot == client.config_snapshot()
    expected = {
        "name": "llama-local",
        "kind": "llama-server",
        "default_model": MODEL,
        "base_url": server.url,
        "max_retries": 5,
        "model_patterns": [MODEL],
        "model": None,
        "context_window": CONTEXT,
    }
    assert snapshot.items() >= expected.items()
    assert described["client_class"] == "LlamaClient"
    assert described["default_model"] == MODEL
    assert described["backend"] == snapshot
    assert described["capabilities"]["streaming"] is True  # type: ignore[index]
    assert described["server"] is None
    assert "s3cret" not in json.dumps(described) + repr(client._settings)


def test_the_config_hash_changes_when_and_only_when_the_configuration_does() -> None:
    def hash_of(**options: Any) -> object:
        with LlamaClient(**{"base_url": running.url, "api_key": "a", **options}) as client:
            return client.config_snapshot()["config_hash"]

    with FakeServer(listed=[MODEL, "b"]) as running, FakeServer() as other:
        by_v1 = hash_of(base_url=f"{running.url}/v1/")
        same = {hash_of(), hash_of(), by_v1, hash_of(max_retries=2)}
        different = [
            hash_of(name="x"),
            hash_of(api_key="b"),
            hash_of(api_key=None),
            hash_of(model="b"),
            hash_of(base_url=other.url),
            hash_of(embedding_model="b"),
            hash_of(max_retries=1),
            hash_of(request_timeout_s=9),
            hash_of(first_token_timeout_s=9),
            hash_of(stall_timeout_s=9),
            hash_of(offline=True),
        ]
    assert len(same) == 1
    assert len({*same, *different}) == 1 + len(different)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "localhost:8080"}, "base_url is 'localhost:8080'"),
        ({"base_url": ""}, "base_url is ''"),
        ({"base_url": "ftp://x"}, "base_url is 'ftp://x'"),
        ({"base_url": "http://x:99999"}, "base_url is"),
        ({"base_url": "http://k:s@x"}, "holds more than"),
        ({"base_url": "http://x?a=1"}, "holds more than"),
        ({"base_url": "http://x", "api_key": "a b"}, "API key"),
        ({"base_url": "http://x", "api_key": "a\nb"}, "API key"),
        ({"base_url": "http://x", "api_key": "é"}, "API key"),
        ({"base_url": "http://x", "ctx_size": 3}, "ctx_size can have no effect"),
        ({"base_url": "http://x", "config": ServerConfig()}, "config can have no effect"),
        ({"on_truncation": "drop"}, "on_truncation is 'drop'"),
        ({"enforcement": "some"}, "enforcement is 'some'"),
        ({"request_timeout_s": 0}, "request_timeout_s is 0"),
        ({"first_token_timeout_s": -1}, "first_token_timeout_s is -1"),
        ({"stall_timeout_s": math.inf}, "stall_timeout_s is inf"),
        ({"stall_timeout_s": None}, "stall_timeout_s is None"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_retries": 1.5}, "max_retries is 1.5"),
        ({"ctx_sise": 3}, "no setting named 'ctx_sise'"),
        ({"ctx_size": 0}, "ctx_size"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        LlamaClient(**options)
    assert caught.value.hint or said == "ctx_size" or "base_url is" in said


def test_health_is_a_status_and_never_an_error(client: LlamaClient, server: FakeServer) -> None:
    status = client.healthcheck()
    assert status.ok
    assert status.checked_at
    assert status.details == {"base_url": server.url}
    server.healthy = False
    status = client.healthcheck()
    assert not status.ok
    assert "503" in str(status.message)
    client.close()
    assert not client.healthcheck().ok


def test_a_server_that_is_gone_is_not_healthy() -> None:
    with FakeServer(llama_cpp=False) as server:
        client = LlamaClient(base_url=server.url, max_retries=0)
        assert client.healthcheck().ok  # by its model list: it has no /health
    with client:
        status = client.healthcheck()
    assert not status.ok
    assert "Nothing answers" in str(status.message)


def test_a_look_alike_of_every_input_works(tool_server: FakeServer) -> None:
    """Same attributes, other classes: agent code may have its own copy of the contract."""

    @dataclass
    class Message:
        role: str
        content: str
        name: str | None = None
        tool_call_id: str | None = None
        tool_name: str | None = None

    tool = SimpleNamespace(name="add", description="d", input_schema={"type": "object"})
    request = SimpleNamespace(
        messages=(Message("user", "hi"),),
        model=None,
        temperature=0.5,
        max_tokens=7,
        tools=(tool,),
        response_schema=None,
        response_format=None,
        metadata={},
        provider_options={},
        task_profile=SimpleNamespace(priority="latency"),
    )
    with LlamaClient(base_url=tool_server.url) as client:
        anything: Any = client
        assert anything.generate(request).text == "I'm glad"
        sent = tool_server.chats[-1].body
        assert (sent["temperature"], sent["max_tokens"]) == (0.5, 7)
        assert sent["tools"][0]["function"]["name"] == "add"
        params = SimpleNamespace(
            temperature=None, max_tokens=3, response_schema=None, provider_options={}
        )
        assert anything.chat((Message("user", "hi"),), params=params).text == "I'm glad"
        assert tool_server.chats[-1].body["max_tokens"] == 3


def test_a_200_without_an_answer_is_a_bad_response(client: LlamaClient, server: FakeServer) -> None:
    for body, kind in (
        (b"", "application/json"),
        (b"<html>login</html>", "text/html"),
        (b"x", "x/y"),
    ):
        server.will(sends(body, kind))
        with pytest.raises(LLMBadResponseError, match=r"empty body|answered with (HTML|x/y)"):
            client.chat("hi")


def test_the_typed_options_are_the_fields_of_the_configuration() -> None:
    """Those that are not arguments of the client itself."""
    assert set(ServerOptions.__annotations__) == {*ServerConfig.model_fields} - {"model", "api_key"}
