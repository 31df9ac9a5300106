"""Which messages may go, and how few do."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ContextOverflowError, LLMCapabilityError, LLMInvalidRequestError
from runtime.inference import wishes
from runtime.inference.clock import Limits
from runtime.inference.fitting import MOST_ROOM, Fit, fitted, groups
from runtime.inference.policy import Policy
from tests.unit.some_server import endpoint, performed

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def conversation(roles: str) -> list[dict[str, object]]:
    return [{"role": ROLES[role], "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("roles", "wanted"),
    [
        ("u", []),
        ("su", []),
        ("suau", [[1, 2]]),
        ("uauau", [[0, 1], [2, 3]]),
        ("suatau", [[1, 2, 3, 4]]),
        ("suattatu", [[1, 2, 3, 4, 5, 6]]),
        ("suatatat", [[2, 3], [4, 5]]),
        ("suauatat", [[1, 2], [4, 5]]),
        ("suattatt", [[2, 3, 4]]),
        ("uaus", [[0, 1]]),
        ("usau", [[0, 2]]),
        ("au", [[0]]),
        ("uu", [[0]]),
        ("sataat", [[1, 2], [3]]),
        ("suta", [[2]]),
    ],
)
def test_messages_go_with_what_belongs_to_them(roles: str, wanted: list[list[int]]) -> None:
    assert groups(conversation(roles)) == wanted


@given(st.text(st.sampled_from("suat"), min_size=1, max_size=30))
def test_what_must_stay_stays_and_no_result_is_parted_from_its_call(roles: str) -> None:
    found = groups(conversation(roles))
    flat = [index for group in found for index in group]
    assert sorted(set(flat)) == flat, "each at most once, in order"
    kept = [n for n in range(len(roles)) if n not in flat]
    assert len(roles) - 1 in kept
    assert [n for n in flat if roles[n] == "s"] == []
    if "u" in roles:
        assert roles.rindex("u") in kept
    at = {index: number for number, group in enumerate(found) for index in group}
    spoken = [n for n in range(len(roles)) if roles[n] != "s"]
    for before, n in itertools.pairwise(spoken):
        if roles[n] == "t" and roles[before] in "at":
            assert at.get(before) == at.get(n)


class Engine:
    """Counts a token a letter, and its questions."""

    def __init__(self, context: int | None = 100, kind: str = "xllamacpp") -> None:
        self.asked = 0
        self.endpoint = endpoint(kind, context=context)

    def fit(self, *contents: str, roles: str = "", max_tokens: int | None = None) -> Any:
        said = [
            SimpleNamespace(role=ROLES[role], content=content)
            for role, content in zip(roles or "ua" * len(contents), contents, strict=False)
        ]
        wish = wishes.from_chat(said, model=None, params=SimpleNamespace(max_tokens=max_tokens))
        return performed(fitted(wish, Limits()), self.endpoint, self.count)

    def count(self, path: str, body: dict[str, Any]) -> tuple[int, object]:
        self.asked += 1
        assert path.endswith("/input_tokens")
        return 200, {"input_tokens": sum(len(each["content"]) for each in body["messages"])}


def test_what_fits_is_counted_once_and_sent_as_it_is() -> None:
    engine = Engine()
    wish, fit = engine.fit("a" * 60, "b" * 20, "c" * 10, max_tokens=10)
    assert len(wish.messages) == 3
    assert fit == Fit(dropped=(), tokens_before=90, tokens_after=90, room=10, context=100)
    assert engine.asked == 1


def test_no_more_goes_than_must() -> None:
    wish, fit = Engine().fit("a" * 60, "b" * 20, "c" * 10, max_tokens=11)
    assert [message["content"] for message in wish.messages] == ["c" * 10]
    assert fit.note() == {
        "dropped": [{"index": 0, "role": "user"}, {"index": 1, "role": "assistant"}],
        "tokens_before": 90,
        "tokens_after": 10,
        "room": 11,
        "context": 100,
    }


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 60))
def test_few_questions_find_the_fewest_messages(sizes: list[int], room: int) -> None:
    sizes = sizes if len(sizes) % 2 else sizes[1:] or [1]
    engine = Engine()
    fits = [n for n in range(0, len(sizes), 2) if sum(sizes[n:]) + room <= 100]
    contents = ["x" * size for size in sizes]
    if not fits:
        with pytest.raises(ContextOverflowError) as caught:
            engine.fit(*contents, max_tokens=room)
        assert (caught.value.prompt_tokens, caught.value.context_tokens) == (sizes[-1], 100)
        return
    wish, fit = engine.fit(*contents, max_tokens=room)
    assert len(wish.messages) == len(sizes) - fits[0]
    assert fit.tokens_after == sum(sizes[fits[0] :])
    assert engine.asked <= 2 + len(sizes).bit_length()


@pytest.mark.parametrize(("context", "room"), [(100, 25), (100_000, MOST_ROOM)])
def test_room_is_kept_for_an_answer_without_a_bound(context: int, room: int) -> None:
    _, fit = Engine(context).fit("a")
    assert fit.room == room


def test_it_needs_to_know_the_context() -> None:
    with pytest.raises(LLMCapabilityError, match="drop_oldest"):
        Engine(None).fit("a")


def test_it_is_asked_for_by_the_client_or_by_one_request() -> None:
    options = SimpleNamespace(provider_options={"fit": "drop_oldest"})
    made = wishes.from_chat("hi", model=None, params=options)
    assert made.policy.fit == "drop_oldest"
    assert made.options == {}
    kept = wishes.from_chat("hi", model=None, params=None, policy=Policy(fit="drop_oldest"))
    assert kept.policy.fit == "drop_oldest"
    wrong = SimpleNamespace(provider_options={"fit": "drop_newest"})
    with pytest.raises(LLMInvalidRequestError, match="fit is 'drop_newest'"):
        wishes.from_chat("hi", model=None, params=wrong)
