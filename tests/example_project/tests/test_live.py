"""The agent on a real model: what must hold whatever the model says."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpdesk import ORDERS, HelpDesk, Ticket

from runtime import ContextOverflowError, LlamaClient, LLMMessage


def test_a_question_is_looked_up_and_answered(desk: HelpDesk) -> None:
    answer = desk.ask("Where is order A-17?")

    assert answer
    assert [turn.role for turn in desk.turns] == ["user", "assistant", "tool", "assistant"]
    assert desk.turns[2].content in ORDERS.values()


def test_the_tool_is_offered(desk: HelpDesk, llama_server: Any) -> None:
    desk.ask("Where is order A-17?")

    first = llama_server.requests[0].body
    assert first["tools"][0]["function"]["name"] == "order_status"


def test_a_second_question_keeps_the_first(desk: HelpDesk, llama_server: Any) -> None:
    desk.ask("Where is order A-17?")
    desk.ask("And A-18?")

    roles = [message["role"] for message in llama_server.requests[-1].body["messages"]]
    assert roles.count("user") == 2


def test_a_complaint_becomes_a_ticket(desk: HelpDesk) -> None:
    assert isinstance(desk.ticket("My parcel is late!"), Ticket)


def test_explanations_come_in_pieces(desk: HelpDesk) -> None:
    assert len(list(desk.explain("refunds"))) > 5


def test_the_same_passage_is_the_nearest(desk: HelpDesk) -> None:
    passages = ["the quick server runs", "every small model waits", "a local engine works"]

    assert desk.nearest(passages[1], passages) == passages[1]


@pytest.mark.llama_model("tiny", ctx_size=512)
def test_a_conversation_that_is_too_long_is_refused(llama_client: LlamaClient) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        llama_client.chat([LLMMessage(role="user", content="word " * 2000)])

    assert caught.value.context_tokens == 512


def test_the_same_run_gives_the_same_words(desk: HelpDesk, llama_server: Any) -> None:
    with llama_server.client() as again:
        assert desk.greet("Ada") == HelpDesk(again).greet("Ada")


def test_any_other_client_can_use_the_server(llama_server: Any) -> None:
    request = urllib.request.Request(
        f"{llama_server.base_url}/v1/chat/completions",
        json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}).encode(),
        {"Authorization": f"Bearer {llama_server.api_key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["choices"][0]["message"]["content"]


def test_the_model_is_a_file(llama_model: Path) -> None:
    assert llama_model.read_bytes()[:4] == b"GGUF"
