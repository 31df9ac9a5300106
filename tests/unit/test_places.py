"""Which slot a conversation is sent to."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.contracts import LLMChatParams
from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.inference import wishes
from runtime.inference.clock import Limits
from runtime.inference.conversation import converse
from runtime.inference.effects import Enter, Locate, Open
from runtime.inference.places import Places
from runtime.inference.reply import Backend

ENGINE = Endpoint(
    base_url="http://127.0.0.1:1",
    api_key=None,
    kind="xllamacpp",
    model="m",
    capabilities=EngineCapabilities(),
    context_tokens=512,
    slots=3,
)
TOOL = SimpleNamespace(name="f", description="", input_schema={"type": "object"})


def wish(*said: str, tools: bool = False) -> wishes.Wish:
    """A conversation: the system's word, then the user's and the assistant's in turn."""
    roles = ["system", *["user", "assistant"] * len(said)]
    messages = [SimpleNamespace(role=r, content=c) for r, c in zip(roles, said, strict=False)]
    return wishes.from_chat(messages, model=None, params=None, tools=[TOOL] if tools else ())


class Slots:
    """Requests one after another."""

    def __init__(self, engine: Endpoint = ENGINE) -> None:
        self.places = Places()
        self.engine = engine

    def used(self, *said: str, tools: bool = False) -> int | None:
        number = self.places.take(wish(*said, tools=tools), self.engine)
        self.places.give_back(number, self.engine)
        return number


def test_conversations_that_begin_alike_each_keep_a_slot() -> None:
    slots = Slots()
    first = [slots.used("S", f"task {n}", tools=True) for n in range(3)]
    assert sorted(map(str, first)) == ["0", "1", "2"]
    for turn in range(1, 4):
        more = [f"m{k}" for k in range(2 * turn)]
        for n in (2, 0, 1):
            assert slots.used("S", f"task {n}", *more, tools=True) == first[n]


def test_single_questions_share_a_slot_with_what_begins_alike() -> None:
    slots = Slots()
    agent = slots.used("A", "task", tools=True)
    one, other = slots.used("S", "one"), slots.used("T", "other")
    assert len({agent, one, other}) == 3
    assert slots.used("S", "two") == one
    assert slots.used("T", "three") == other
    assert slots.used("A", "a question") != agent, "that goes on"
    assert slots.used("A", "task", "call", "result", tools=True) == agent


def test_a_new_conversation_takes_the_slot_that_none_went_on_in_for_longest() -> None:
    slots = Slots()
    numbers = [slots.used("S", f"task {n}", tools=True) for n in range(3)]
    slots.used("S", "task 0", "answer", "question", tools=True)
    assert slots.used("S", "another", tools=True) == numbers[1]


def test_a_conversation_that_lost_its_slot_is_left_to_the_engine() -> None:
    slots = Slots()
    for n in range(4):
        slots.used("S", f"task {n}", tools=True)
    assert slots.used("S", "task 0", "answer", "question", tools=True) is None


def test_a_busy_slot_is_nobody_elses() -> None:
    places = Places()
    taken = [places.take(wish("S", "same"), ENGINE) for _ in range(4)]
    assert sorted(map(str, taken)) == ["0", "1", "2", "None"]
    places.give_back(1, ENGINE)
    assert places.take(wish("S", "same"), ENGINE) is None, "the engine may have one there"
    for _ in range(2):
        places.give_back(None, ENGINE)
    assert places.take(wish("S", "same"), ENGINE) == 1


def test_other_tools_are_another_beginning() -> None:
    slots = Slots()
    assert slots.used("S", "task", tools=True) != slots.used("S", "task")


def test_a_restarted_engine_has_forgotten() -> None:
    slots = Slots()
    first = slots.used("S", "task", tools=True)
    slots.used("T", "task", tools=True)
    slots.engine = replace(ENGINE, generation=1)
    assert first is not None
    slots.places.give_back(first, ENGINE)
    assert slots.used("T", "task", "answer", "more", tools=True) == first


@pytest.mark.parametrize(
    "changes", [{"kind": "llama-cpp-python"}, {"slots": None}, {"slots": 1}, {"kind": "openai"}]
)
def test_where_there_is_nothing_to_choose_nothing_is(changes: dict[str, Any]) -> None:
    assert Slots(replace(ENGINE, **changes)).used("S", "x") is None


def test_where_texts_are_embedded_the_engine_chooses() -> None:
    slots = Slots()
    slots.used("S", "x")
    slots.places.leave_alone()
    assert slots.used("S", "x") is None


def test_a_slot_is_chosen_once_the_request_has_come_up_in_line() -> None:
    """Before that the others are still at work in all of them."""
    places = Places()
    owners = [f"task {n}" for n in range(3)]
    taken = {name: places.take(wish("S", name, tools=True), ENGINE) for name in owners}
    go_on = wish("S", "task 1", "answer", "question", tools=True)
    backend = Backend(name="n", config_hash="h")
    flow = converse(go_on, Limits(), backend, emit=False, places=places)

    assert isinstance(flow.send(None), Enter)
    for number in taken.values():
        places.give_back(number, ENGINE)
    assert isinstance(flow.send(None), Locate)
    assert isinstance(flow.send(ENGINE), Locate)
    asked = flow.send(ENGINE)

    assert isinstance(asked, Open)
    assert json.loads(asked.request.body or b"")["id_slot"] == taken["task 1"]
    assert places.take(go_on, ENGINE) != taken["task 1"], "it is busy"
    flow.close()
    places.give_back(None, ENGINE)
    assert places.take(go_on, ENGINE) == taken["task 1"], "it was given back"


def test_a_slot_that_the_caller_names_is_left_to_them() -> None:
    named = wishes.from_chat(
        "hi", model=None, params=LLMChatParams(provider_options={"id_slot": 2})
    )
    backend = Backend(name="n", config_hash="h")
    flow = converse(named, Limits(), backend, emit=False, places=Places())
    assert isinstance(flow.send(None), Enter)
    assert isinstance(flow.send(None), Locate)
    asked = flow.send(ENGINE)
    assert isinstance(asked, Open)
    assert json.loads(asked.request.body or b"")["id_slot"] == 2
    flow.close()
