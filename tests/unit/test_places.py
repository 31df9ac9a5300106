"""Which slot a conversation is sent to."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.inference import payload
from runtime.inference.places import Places

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


def wish(*said: str, tools: bool = False) -> payload.Wish:
    """A conversation: the system's word, then the user's and the assistant's in turn."""
    roles = ["system", *["user", "assistant"] * len(said)]
    messages = [SimpleNamespace(role=r, content=c) for r, c in zip(roles, said, strict=False)]
    return payload.from_chat(messages, model=None, params=None, tools=[TOOL] if tools else ())


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
