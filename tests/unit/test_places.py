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
from runtime.inference.effects import Enter, HttpHead, Locate, Open
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
    """Requests one after another; the engine takes slot 2 where it chooses."""

    def __init__(self, engine: Endpoint = ENGINE) -> None:
        self.places = Places()
        self.engine = engine

    def used(self, *said: str, tools: bool = False, landed: int | None = 2) -> int | None:
        seat = self.places.take(wish(*said, tools=tools), self.engine)
        assert seat
        self.places.give_back(seat, landed)
        return seat.slot


def test_conversations_each_begin_in_a_slot_of_their_own_and_go_on_there() -> None:
    slots = Slots()
    first = [slots.used("S", "one"), slots.used("T", "two"), slots.used("U", "three")]
    assert first == [0, 1, 2]
    for turn in range(1, 4):
        more = [f"m{k}" for k in range(2 * turn)]
        assert slots.used("U", "three", *more) == 2
        assert slots.used("S", "one", *more) == 0
        assert slots.used("T", "two", *more) == 1


def test_what_begins_alike_is_left_to_the_engine_and_found_where_that_put_it() -> None:
    """It looks among its copies for the beginning that both have."""
    slots = Slots()
    assert slots.used("S", "one") == 0
    assert slots.used("S", "two", landed=1) is None
    assert slots.used("S", "two", "answer", "question") == 1
    assert slots.used("S", "one", "answer", "question") == 0


def test_a_conversation_that_lost_its_slot_is_left_to_the_engine() -> None:
    slots = Slots()
    for name in "STUV":
        slots.used(name, "task")
    assert slots.used("U", "task", "answer", "question", landed=0) is None, "V took its slot"
    assert slots.used("U", "task", "answer", "question", "answer", "more") == 0
    assert slots.used("S", "task", "answer", "question") is None, "U took its slot"


def test_a_busy_slot_is_nobody_elses() -> None:
    places = Places()
    one = places.take(wish("S", "same"), ENGINE)
    other = places.take(wish("S", "same"), ENGINE)
    assert one
    assert one.slot == 0
    assert other
    assert other.slot is None
    third = places.take(wish("T", "new"), ENGINE)
    assert third
    assert third.slot is None, "nobody knows which slot the engine chose"
    for seat, landed in ((one, None), (other, 1), (third, 2)):
        places.give_back(seat, landed)
    again = places.take(wish("T", "new", "answer", "question"), ENGINE)
    assert again
    assert again.slot == 2


def test_a_request_that_ended_before_it_said_where_makes_all_idle_slots_unknown() -> None:
    slots = Slots()
    slots.used("S", "one")
    busy = slots.places.take(wish("T", "two"), ENGINE)
    assert busy
    assert busy.slot == 1
    slots.used("S", "other", landed=None)
    assert slots.used("S", "one", "answer", "question") is None
    slots.places.give_back(busy, None)
    assert slots.used("T", "two", "answer", "question") == 1, "it was busy all the while"


def test_other_tools_are_another_beginning() -> None:
    slots = Slots()
    assert slots.used("S", "task", tools=True) == 0
    assert slots.used("S", "task") == 1


def test_a_restarted_engine_has_forgotten() -> None:
    slots = Slots()
    old = slots.places.take(wish("S", "task"), ENGINE)
    slots.engine = replace(ENGINE, generation=1)
    assert slots.used("T", "task") == 0
    assert old
    slots.places.give_back(old, 0)
    assert slots.used("T", "task", "answer", "more") == 0
    assert slots.used("S", "task", "answer", "more") == 1


@pytest.mark.parametrize(
    "changes", [{"kind": "llama-cpp-python"}, {"slots": None}, {"slots": 1}, {"kind": "openai"}]
)
def test_where_there_is_nothing_to_choose_nothing_is(changes: dict[str, Any]) -> None:
    assert Places().take(wish("S", "x"), replace(ENGINE, **changes)) is None


def test_while_texts_are_embedded_the_engine_chooses_and_nothing_is_known_after() -> None:
    slots = Slots()
    slots.used("S", "x")

    def embedding() -> Any:
        yield "sent"
        return "vectors"

    flow: Any = slots.places.disturbed(embedding())
    assert next(flow) == "sent"
    assert slots.used("S", "x", "answer", "question") is None
    with pytest.raises(StopIteration) as ended:
        next(flow)
    assert ended.value.value == "vectors"
    assert slots.used("S", "x", "answer", "question", landed=1) is None
    assert slots.used("S", "x", "answer", "question") == 1


def begun(flow: Any) -> dict[str, Any]:
    """The body of the request that a conversation becomes."""
    assert isinstance(flow.send(None), Enter)
    assert isinstance(flow.send(None), Locate)
    asked = flow.send(ENGINE)
    assert isinstance(asked, Open)
    body: dict[str, Any] = json.loads(asked.request.body or b"")
    return body


def test_a_slot_is_chosen_once_the_request_has_come_up_in_line() -> None:
    """Before that the others are still at work in all of them."""
    places = Places()
    seats = [places.take(wish(name, "task"), ENGINE) for name in "STU"]
    go_on = wish("T", "task", "answer", "question")
    backend = Backend(name="n", config_hash="h")
    flow = converse(go_on, Limits(), backend, emit=False, places=places)
    for seat in seats:
        assert seat
        places.give_back(seat, None)
    assert begun(flow)["id_slot"] == 1
    other = places.take(go_on, ENGINE)
    assert other
    assert other.slot is None, "it is busy"
    places.give_back(other, 0)
    flow.close()
    assert places.take(go_on, ENGINE) != other, "it was given back"


def test_the_engine_is_asked_to_say_which_slot_it_chose() -> None:
    places = Places()
    backend = Backend(name="n", config_hash="h")
    for number, name in enumerate(["one", "two"]):
        flow = converse(wish("S", name), Limits(), backend, emit=False, places=places)
        asked = begun(flow)
        assert asked.get("id_slot") == (None if number else 0)
        assert asked.get("verbose") == (True if number else None)
    said = {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}
    told = {**said, "__verbose": {"id_slot": 2}}
    flow.send(HttpHead(status=200, headers={"content-type": "text/event-stream"}))
    with pytest.raises(StopIteration):
        flow.send(f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n".encode())
    seat = places.take(wish("S", "two", "x", "and"), ENGINE)
    assert seat
    assert seat.slot == 2


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
