"""Calls that are cut off, asked for again, or did not come: by both ways to offer tools."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from runtime import LlamaClient
from runtime.contracts import LLMMessage, LLMRequest, ToolSpec
from runtime.errors import CutOffError, LLMBadResponseError, UnclosableAnswerError
from tests.fakes.openai_server import FakeServer, event, events_of, piece, says, streams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes.openai_server import Behaviour

ADD = ToolSpec(
    name="add",
    description="Adds.",
    input_schema={
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "string", "minLength": 2}},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
    output_schema={},
)
WHOLE = '{"x": 1, "y": "ab"}'


@pytest.fixture(params=["native", "prompt"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with FakeServer(tools=request.param == "native") as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[LlamaClient]:
    with LlamaClient(base_url=server.url) as made:
        yield made


def calls(server: FakeServer, *arguments: str, reason: str = "stop") -> Behaviour:
    """An answer with calls, in the form that the server's way has; the last one may be cut."""
    if server.tools:
        deltas: list[dict[str, Any]] = [
            {"index": n, "id": f"c{n}", "function": {"name": "add", "arguments": each}}
            for n, each in enumerate(arguments)
        ]
        chunks = [event(piece({"tool_calls": [delta]})) for delta in deltas]
        return streams(*chunks, *events_of([], reason=reason))
    lines = [f'{{"name": "add", "arguments": {each}}}' for each in arguments]
    text = "\n".join(lines)
    return says(text[:-1] if reason == "length" else text, reason=reason)


def ask(**options: Any) -> LLMRequest:
    messages = [LLMMessage(role="user", content="hi")]
    return LLMRequest(messages=messages, tools=[ADD], provider_options=options)


@pytest.mark.parametrize(
    ("cut", "closed"),
    [
        ("{", '{"x": 0, "y": "aa"}'),
        ('{"x": 17, "y": "q', '{"x": 17, "y": "qa"}'),
        ('{"x": 17, "y', '{"x": 17, "y": "aa"}'),
    ],
)
def test_arguments_that_were_cut_off_are_closed_and_marked(
    client: LlamaClient, server: FakeServer, cut: str, closed: str
) -> None:
    server.will(calls(server, WHOLE, cut, reason="length"))
    reply = client.generate(ask(on_truncation="close", parallel_tool_calls=True))
    assert [call.arguments_json for call in reply.tool_calls] == [WHOLE, closed]
    assert reply.finish_reason == "length"
    assert reply.raw is not None
    assert reply.raw["tools"] == {
        "path": "native" if server.tools else "prompt",
        "closed": {
            "call_id": reply.tool_calls[1].call_id,
            "start": len(cut),
            "text": closed[len(cut) :],
            "dropped": 0,
        },
    }


def test_what_closes_a_call_is_streamed_as_its_last_piece(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(calls(server, '{"x": 17, "y": "q', reason="length"))
    deltas = [each.tool_call_delta for each in client.stream(ask(on_truncation="close"))]
    pieces = [each for each in deltas if each]
    assert "".join(each.arguments_json_delta or "" for each in pieces) == '{"x": 17, "y": "qa"}'
    assert len({each.call_id for each in pieces}) == 1


def test_a_call_that_was_cut_off_is_an_error_with_its_text(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(calls(server, WHOLE, '{"x": 17, "y', reason="length"))
    with pytest.raises(CutOffError, match="call to 'add' was cut off") as caught:
        client.generate(ask())
    assert caught.value.partial_text == '{"x": 17, "y'


def test_a_call_that_was_whole_when_the_budget_ended_is_one(
    client: LlamaClient, server: FakeServer
) -> None:
    for option in ("error", "close"):
        server.will(calls(server, WHOLE, reason="length"))
        reply = client.generate(ask(on_truncation=option))
        assert [call.arguments_json for call in reply.tool_calls] == [WHOLE]
        assert reply.finish_reason == "length"


def test_a_wrong_call_before_the_one_that_was_cut_is_not_passed_over(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(calls(server, "{}", '{"x": 1', reason="length"), calls(server, WHOLE))
    reply = client.generate(ask(on_truncation="close"))
    assert [call.arguments_json for call in reply.tool_calls] == [WHOLE]


def test_what_cannot_be_closed_is_an_error(client: LlamaClient, server: FakeServer) -> None:
    server.will(calls(server, '{"z": [', reason="length"))
    stream = client.stream(ask(on_truncation="close"))
    with pytest.raises(UnclosableAnswerError, match="call to 'add' was cut off") as caught:
        list(stream)
    assert caught.value.partial_text == '{"z": ['


def test_the_model_is_told_what_was_wrong_with_its_call(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(calls(server, '{"x": "1", "y": "ab"}', WHOLE), calls(server, WHOLE))
    assert client.generate(ask(temperature=0.0)).tool_calls[0].arguments_json == WHOLE
    told = server.chats[-1].body["messages"]
    if server.tools:
        assert [message["role"] for message in told] == ["user", "assistant", "tool", "tool"]
        assert [len(told[1]["tool_calls"]), told[2]["tool_call_id"]] == [2, "c0"]
        assert "not carried out" in told[3]["content"]
    else:
        assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
        assert told[2]["content"].startswith('{"name": "add", "arguments": {"x": "1"')
    said = json.dumps(told)
    assert "at /x" in said
    assert "is not of type" in said


@pytest.mark.parametrize("emit", [False, True])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_prose_where_a_call_must_be_is_asked_for_again_under_a_grammar(
    client: LlamaClient, server: FakeServer, emit: bool, reason: str
) -> None:
    """llama.cpp lets a model write as much prose as it likes before the call it must make."""
    grammatical = '{"name": "add", "arguments": {"x": 1, "y": "ab"}}'
    server.will(says("The sum", " is 3.", reason=reason), says(grammatical))
    request = ask(tool_choice="required")
    if not server.tools and reason == "length":
        with pytest.raises(CutOffError):
            client.generate(request)
        return
    if emit:
        deltas = list(client.stream(request))
        assert not [each for each in deltas if each.text_delta]
        names = [each.tool_call_delta.name for each in deltas if each.tool_call_delta]
        assert names[0] == "add"
    else:
        reply = client.generate(request)
        assert reply.tool_calls[0].arguments_json == WHOLE
        assert reply.text == ""
        assert reply.raw is not None
        assert reply.raw["tools"] == {"path": "prompt", "closed": None}
        assert reply.raw["attempts"] == 2
    assert "grammar" in server.chats[-1].body
    assert "tools" not in server.chats[-1].body


def test_prose_before_a_call_is_kept(client: LlamaClient, server: FakeServer) -> None:
    if not server.tools:
        return
    call = {"index": 0, "id": "c", "function": {"name": "add", "arguments": WHOLE}}
    chunks = [event(piece({"content": "Let me "})), event(piece({"content": "see."}))]
    answer = streams(*chunks, event(piece({"tool_calls": [call]})), *events_of([]))
    server.will(answer, answer)
    request = ask(tool_choice="required")
    assert client.generate(request).text == "Let me see."
    first, second, *_ = client.stream(request)
    assert first.text_delta == "Let me see."
    assert second.tool_call_delta is not None


def test_prose_that_stays_is_never_a_success(client: LlamaClient, server: FakeServer) -> None:
    server.will(*[says("The sum is 3.")] * 3)
    with pytest.raises(LLMBadResponseError, match="answered with text") as caught:
        client.generate(ask(tool_choice="required"))
    assert caught.value.partial_text == "The sum is 3."


def test_a_text_that_might_have_become_a_call_is_streamed_at_its_end(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(says('{"name"', ': "x"}'))
    deltas = list(client.stream(ask()))
    assert "".join(each.text_delta or "" for each in deltas) == '{"name": "x"}'


def test_where_no_call_may_be_what_looks_like_one_is_text(
    client: LlamaClient, server: FakeServer
) -> None:
    said = '{"name": "add", "arguments": {"x": 1, "y": "ab"}}'
    server.will(says(said))
    reply = client.generate(ask(tool_choice="none"))
    assert (reply.text, reply.tool_calls) == (said, ())
