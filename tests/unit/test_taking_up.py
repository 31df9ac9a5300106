"""What of an answer that broke off is given to the engine instead of being written again."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.base import SameBits
from runtime.inference.taking_up import LEAST, WRITTEN_AGAIN, steps
from tests.fakes.openai_server import event, events_of, piece
from tests.unit.test_recovery import DIED, ENDPOINT, TOOLS, Engine, wish_of

if TYPE_CHECKING:
    from runtime.engines.base import Endpoint
    from runtime.inference.wishes import Wish

PROMPT = 10
STORY = [f" w{number}" for number in range(20)]
CAME = 15
GIVEN = CAME - WRITTEN_AGAIN
FREE = SameBits(step=None, context=None)
PLAIN = wish_of(temperature=0, max_tokens=40, provider_options={"id_slot": 0})
ABLE = replace(ENDPOINT, same_bits=FREE, context_tokens=512)


def story(begin: int = 0, *, prompt: int = PROMPT, cached: int = 0) -> list[bytes]:
    """The events of the story from one of its tokens on, with how the prompt went before them."""
    told = {"total": prompt, "cache": cached, "processed": prompt, "time_ms": 1}
    head, *rest = events_of(STORY[begin:])
    went = event({**piece({"role": "assistant", "content": None}), "prompt_progress": told})
    return [head, went, *rest]


def broken_off(came: int = CAME) -> list[Any]:
    return [*story()[: 2 + came], DIED]


def counted(tokens: int) -> list[bytes]:
    """A whole answer of one token to a prompt of so many."""
    choice = {"index": 0, "finish_reason": "length", "message": {"content": "x"}}
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
    return [json.dumps({"choices": [choice], "usage": usage}).encode()]


def given(reply: Any) -> list[int]:
    return [each["given"] for each in reply.raw["recovery"]["interruptions"]]


@pytest.mark.parametrize(
    ("tokens", "prompt", "same_bits", "expected"),
    [
        pytest.param(LEAST + WRITTEN_AGAIN - 1, 5, FREE, (), id="too few"),
        pytest.param(LEAST + WRITTEN_AGAIN, 5, FREE, (LEAST,), id="just enough"),
        pytest.param(500, 90, FREE, (496,), id="in one step, however many"),
        pytest.param(24, 40, SameBits(step=63, context=256), (20,), id="with the prompt"),
        pytest.param(60, 40, SameBits(step=63, context=256), (23, 56), id="and one more step"),
        pytest.param(34, 40, SameBits(step=63, context=256), (23,), id="not for a few more"),
        pytest.param(80, 63, SameBits(step=63, context=None), (0, 63, 76), id="prompt by itself"),
        pytest.param(80, 100, SameBits(step=63, context=None), (0, 63, 76), id="a long one, too"),
        pytest.param(300, 100, SameBits(step=63, context=256), (0, 63, 126, 156), id="up to 256"),
        pytest.param(300, 250, SameBits(step=63, context=256), (), id="no room within 256"),
        pytest.param(300, 999, SameBits(step=63, context=256), (), id="past 256"),
    ],
)
def test_which_tokens_are_given_in_which_request(
    tokens: int, prompt: int, same_bits: SameBits, expected: tuple[int, ...]
) -> None:
    planned = steps(tokens, prompt_tokens=prompt, same_bits=same_bits)
    assert planned == expected
    if same_bits.step is not None:
        for before, after in pairwise(planned):
            assert after - before <= same_bits.step


def test_nearly_all_is_given_and_the_rest_compared() -> None:
    engine = Engine(broken_off(), story(GIVEN, prompt=PROMPT + GIVEN))
    reply = engine.run(PLAIN, endpoint=ABLE)
    assert engine.text == reply.text == "".join(STORY)
    again = engine.bodies[1]
    assert again["messages"][-1] == {"role": "assistant", "content": "".join(STORY[:GIVEN])}
    assert again["max_tokens"] == 40 - GIVEN
    assert again["id_slot"] == 0
    raw: Any = reply.raw
    assert raw["recovery"]["exact"] is True
    assert raw["recovery"]["interruptions"][0]["how"] == "replayed"
    assert given(reply) == [GIVEN]
    usage: Any = reply.usage  # of the fake: 32 for the prompt and 3 for the answer
    assert (usage.prompt_tokens, usage.completion_tokens) == (32 - GIVEN, 3 + GIVEN)


def test_it_can_break_off_again_before_and_after_it_has_caught_up() -> None:
    more = story(GIVEN, prompt=PROMPT + GIVEN)
    late = GIVEN + 6 - WRITTEN_AGAIN
    engine = Engine(
        broken_off(),
        [*more[:3], DIED],
        [*more[:8], DIED],
        story(late, prompt=PROMPT + late),
    )
    reply = engine.run(PLAIN, endpoint=ABLE)
    assert engine.text == reply.text == "".join(STORY)
    assert given(reply) == [GIVEN, late]
    raw: Any = reply.raw
    assert [each["token"] for each in raw["recovery"]["interruptions"]] == [CAME, GIVEN + 6]


def test_a_prompt_that_fills_a_step_goes_first_by_itself() -> None:
    endpoint = replace(ABLE, same_bits=SameBits(step=PROMPT, context=None))
    engine = Engine(broken_off(), counted(PROMPT), story(10, prompt=PROMPT + 10, cached=PROMPT))
    reply = engine.run(PLAIN, endpoint=endpoint)
    assert engine.text == reply.text == "".join(STORY)
    _, first, second = engine.bodies
    assert (first["messages"], first["max_tokens"]) == (engine.bodies[0]["messages"], 1)
    assert "stream" not in first
    assert second["messages"][-1]["content"] == "".join(STORY[:10])
    assert given(reply) == [10]


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([story(GIVEN, prompt=PROMPT + GIVEN + 1)], id="other tokens"),
        pytest.param([events_of(STORY[GIVEN:])], id="it does not say how many"),
        pytest.param([story(GIVEN + 1, prompt=PROMPT + GIVEN)], id="it goes on otherwise"),
        pytest.param([story(len(STORY), prompt=PROMPT + GIVEN)], id="it ends"),
    ],
)
def test_where_it_does_not_fit_all_of_it_comes_again(answers: list[list[bytes]]) -> None:
    engine = Engine(broken_off(), *answers, story())
    reply = engine.run(PLAIN, endpoint=ABLE)
    assert engine.text == reply.text == "".join(STORY)
    assert engine.bodies[-1]["messages"] == engine.bodies[0]["messages"]
    assert given(reply) == [0]
    raw: Any = reply.raw
    assert raw["recovery"]["exact"] is True


@pytest.mark.parametrize(
    "second",
    [
        pytest.param([counted(PROMPT + 1), story()], id="the prompt has another length"),
        pytest.param(
            [
                counted(PROMPT),
                story(10, prompt=PROMPT + 10, cached=PROMPT - 1),
                story(),
            ],
            id="the cache was lost, so that the step is too long",
        ),
        pytest.param([[b"{"], story()], id="no answer that says"),
    ],
)
def test_steps_that_do_not_fit(second: list[list[bytes]]) -> None:
    endpoint = replace(ABLE, same_bits=SameBits(step=PROMPT, context=None))
    engine = Engine(broken_off(), *second)
    reply = engine.run(PLAIN, endpoint=endpoint)
    assert engine.text == reply.text == "".join(STORY)
    assert given(reply) == [0]


@pytest.mark.parametrize(
    ("wish", "endpoint"),
    [
        pytest.param(replace(PLAIN, temperature=0.8), ABLE, id="chance"),
        pytest.param(replace(PLAIN, temperature=None), ABLE, id="perhaps chance"),
        pytest.param(PLAIN, ENDPOINT, id="other bits"),
        pytest.param(replace(PLAIN, options={}), ABLE, id="any slot"),
        pytest.param(
            replace(PLAIN, options={"id_slot": 0, "mirostat": 2}), ABLE, id="chance by an option"
        ),
        pytest.param(
            replace(PLAIN, options={"id_slot": 0, "logprobs": True}), ABLE, id="probabilities"
        ),
        pytest.param(
            wish_of(
                temperature=0, response_schema={"type": "string"}, provider_options={"id_slot": 0}
            ),
            ABLE,
            id="a grammar would begin anew",
        ),
        pytest.param(replace(PLAIN, tools=TOOLS), ABLE, id="tools"),
    ],
)
def test_everything_else_comes_again_from_the_start(wish: Wish, endpoint: Endpoint) -> None:
    engine = Engine(broken_off(), broken_off())
    with pytest.raises(IndexError):  # the third request; the first two tell enough
        engine.run(wish, endpoint=endpoint)
    assert engine.bodies[1] == engine.bodies[0]
