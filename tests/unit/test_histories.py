"""Histories as the strictest templates want them, whatever they were."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import LlamaClient
from runtime.contracts import LLMMessage
from runtime.errors import LLMInvalidRequestError
from runtime.inference.histories import regular
from tests.fakes.openai_server import FakeServer, refuses, says

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = st.sampled_from(["", "a", "b c"])
CALL = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["c1", "c2", "call_0123456789"]),
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.just("add"), "arguments": st.sampled_from(['{"x": 1}', "{oops", "[]", ""])}
        ),
    }
)
MESSAGE: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT}
    ),
    st.fixed_dictionaries(
        {
            "role": st.just("assistant"),
            "content": TEXT,
            "tool_calls": st.lists(CALL, min_size=1, max_size=3),
        }
    ),
    st.fixed_dictionaries(
        {"role": st.just("tool"), "content": TEXT},
        optional={
            "tool_call_id": st.sampled_from(["c1", "c2", "other"]),
            "name": st.just("add"),
        },
    ),
)
HISTORIES = st.lists(MESSAGE, min_size=1, max_size=8)


@settings(max_examples=200)
@given(HISTORIES)
def test_the_order_is_the_one_that_the_strictest_ask_for(history: list[dict[str, Any]]) -> None:
    made: list[Any] = regular(history, tools=True)
    body = made[1:] if made[0]["role"] == "system" else made
    assert all(message["role"] != "system" for message in body)
    assert body[0]["role"] == "user"
    said = [m["role"] for m in body if m["role"] == "user" or "tool_calls" not in m]
    turns = [role for role in said if role != "tool"]
    assert all(one != following for one, following in pairwise(turns))
    for position, message in enumerate(body):
        if message["role"] == "tool":
            (call,) = body[position - 1]["tool_calls"]
            assert call["id"] == message["tool_call_id"]
            assert len(call["id"]) == 9
            assert call["id"].isalnum()
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
        elif "tool_calls" in message:
            assert body[position + 1]["role"] == "tool"
        else:
            assert message["content"]


@settings(max_examples=200)
@given(HISTORIES)
def test_without_tools_two_speak_in_turn(history: list[dict[str, Any]]) -> None:
    made = regular(history, tools=False)
    assert [m["role"] for m in made] == ["user", "assistant"] * (len(made) // 2) + (
        ["user"] if len(made) % 2 else []
    )
    assert all(message["content"] for message in made)
    said = "\n".join(str(message["content"]) for message in made)
    assert all(str(m["content"]) in said for m in history)


def test_a_regular_history_stays_as_it_is() -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "a", "arguments": "{}"}}
    history: list[dict[str, object]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    made: list[Any] = regular(history, tools=True)
    assert [m["role"] for m in made] == [m["role"] for m in history]
    assert [m["content"] for m in made] == [m["content"] for m in history]
    assert made[2]["tool_calls"][0]["function"] == call["function"]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(tools=True) as running:
        yield running


REFUSAL = "While executing CallExpression at line 18, column 32 in source: raise_exception('Conv"


@pytest.mark.parametrize("status", [400, 500])
def test_what_a_template_refuses_is_brought_into_order_and_marked(
    server: FakeServer, status: int
) -> None:
    refusal = refuses(status, {"error": {"message": REFUSAL, "code": status}})
    with LlamaClient(base_url=server.url) as client:
        server.will(refusal, says("ok"))
        reply = client.chat([_turn("user", "a"), _turn("user", "b")])
        assert reply.raw is not None
        assert reply.raw["history"] == "reordered"
        assert reply.raw["attempts"] == 1
        assert [m["content"] for m in server.chats[-1].body["messages"]] == ["a\n\nb"]
        server.will(refusal, refusal, says("ok"))
        reply = client.chat([_turn("system", "s"), _turn("user", "a")])
        assert reply.raw is not None
        assert reply.raw["history"] == "flattened"
        assert server.chats[-1].body["messages"] == [{"role": "user", "content": "s\n\na"}]
        assert "history" not in (client.chat("plain").raw or {})


def test_what_no_order_mends_stays_refused(server: FakeServer) -> None:
    refusal = refuses(400, {"error": {"message": REFUSAL, "code": 400}})
    server.will(*[refusal] * 4)
    with (
        LlamaClient(base_url=server.url) as client,
        pytest.raises(LLMInvalidRequestError, match="CallExpression"),
    ):
        client.chat("hi")
    assert len(server.chats) == 1 + 3, "the probe, and three orders"


def test_other_refusals_are_not_tried_in_another_order(server: FakeServer) -> None:
    server.will(refuses(400, {"error": {"message": "top_p is too large", "code": 400}}))
    with (
        LlamaClient(base_url=server.url) as client,
        pytest.raises(LLMInvalidRequestError, match="top_p"),
    ):
        client.chat("hi")


def _turn(role: Any, content: str) -> Any:
    return LLMMessage(role=role, content=content)
