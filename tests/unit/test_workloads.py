"""The workloads are the same for everybody, new in every round, and timed as they are answered."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import jsonschema_rs
import pytest

from runtime.tuning import material
from runtime.tuning.running import run
from runtime.tuning.talkers import Answer
from runtime.tuning.workloads import NAMES, TITLES, Question, last_question, workload

if TYPE_CHECKING:
    from runtime.tuning.workloads import WorkloadName


def prompt(question: Question) -> str:
    return "\n".join(f"{each.role}: {each.content}" for each in question.messages)


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_is_the_same_for_everybody(name: WorkloadName) -> None:
    assert workload(name, at_once=3, number=7) == workload(name, at_once=3, number=7)
    assert name in TITLES


@pytest.mark.parametrize("name", NAMES)
def test_another_round_begins_with_other_words(name: WorkloadName) -> None:
    """Else a cache that remembers the last round would answer for the engine."""
    first, second = (workload(name, number=number).conversations[0] for number in (1, 2))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert prompt(one)[:24] != prompt(other)[:24]
        assert len(prompt(one)) == pytest.approx(len(prompt(other)), rel=0.05, abs=20)


@pytest.mark.parametrize("name", NAMES)
def test_conversations_side_by_side_share_their_system_prompt_alone(name: WorkloadName) -> None:
    led = workload(name, at_once=4).conversations
    assert len({each[0].messages[0].content for each in led}) == 1
    assert len({each[0].messages[1].content for each in led}) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_small_scale_is_short(name: WorkloadName) -> None:
    whole, small = (workload(name, scale=scale).conversations[0] for scale in (1.0, 0.1))
    assert sum(map(len, map(prompt, small))) <= sum(map(len, map(prompt, whole)))
    if name != "json":  # cut off, it would be none
        assert sum(each.max_tokens for each in small) <= sum(each.max_tokens for each in whole) / 5


def test_an_agent_appends_to_its_history_and_quotes_what_it_saw() -> None:
    turns = workload("agent-loop").conversations[0]
    assert len(turns) == 10
    for before, after in itertools.pairwise(turns):
        assert after.messages[: len(before.messages)] == before.messages
        answer = json.loads(after.messages[-2].content)
        assert answer["tool"] == "get_order"
        assert answer["arguments"]["order_id"] in before.messages[-1].content
        if answer["seen"]:
            assert material.compact(answer["seen"]) in before.messages[-1].content


def test_the_last_question_comes_with_the_whole_history() -> None:
    whole = workload("agent-loop", at_once=2)
    last = last_question(whole)
    assert [each for (each,) in last.conversations] == [each[-1] for each in whole.conversations]


def test_what_is_to_be_extracted_can_be_said_by_the_schema() -> None:
    (question, *_) = workload("json").conversations[0]
    assert question.schema
    item = {"article": "lamp", "quantity": 2, "paid": True}
    good = {"customer": "Mei Chen", "city": "Oslo", "items": [item] * 3, "state": "open"}
    assert jsonschema_rs.is_valid(dict(question.schema), good)


class Crowd:
    """Answers when so many ask at once, and remembers in which order it was asked."""

    def __init__(self, size: int) -> None:
        self.asked: list[str] = []
        self._all_here = threading.Barrier(size)

    def ask(self, question: Question) -> Answer:
        self._all_here.wait(5)
        self.asked.append(prompt(question))
        return Answer(text="so", first_token_s=0.1, total_s=0.2, completion_tokens=3)


def test_conversations_are_led_side_by_side_and_their_questions_in_turn() -> None:
    crowd = Crowd(3)
    asked = workload("agent-loop", at_once=3, scale=0.3)
    began = time.perf_counter()
    done = run(asked, crowd)
    assert 0 < done.wall_s <= time.perf_counter() - began
    assert done.texts == (("so",) * 3,) * 3
    assert done.tokens_per_s == pytest.approx(27 / done.wall_s)
    assert done.first_tokens_s == (0.1,) * 9
    for questions in asked.conversations:
        told = [text for text in crowd.asked if text in set(map(prompt, questions))]
        assert told == list(map(prompt, questions))


def test_speed_counts_from_the_first_token() -> None:
    answer = Answer(text="a b c", first_token_s=1.0, total_s=3.0, completion_tokens=5)
    assert answer.tokens_per_s == 2.0
    assert replace(answer, completion_tokens=1).tokens_per_s is None
    assert replace(answer, total_s=1.0).tokens_per_s is None
