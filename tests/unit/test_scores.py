"""Probabilities of tokens in streams, also over a break."""

from __future__ import annotations

from runtime.contracts import LLMDelta, Usage
from runtime.inference.recovery import Course
from runtime.inference.scores import ScoredDelta, Scores


def told(delta: LLMDelta) -> tuple[object, ...]:
    return delta.logprobs if isinstance(delta, ScoredDelta) else ()


def test_a_piece_has_its_tokens_and_those_before_it_that_had_none() -> None:
    scores = Scores(Course(max_retries=0, emit=True))
    plain = LLMDelta(text_delta="a")
    assert scores.put_on(plain) is plain
    scores.take([1])
    scores.take([2])
    counted = LLMDelta(usage_delta=Usage())
    assert scores.put_on(counted) is counted
    made = scores.put_on(plain)
    assert (made.text_delta, told(made)) == ("a", (1, 2))
    assert scores.put_on(plain) is plain


def test_after_a_break_none_comes_twice_and_none_is_missing() -> None:
    course = Course(max_retries=0, emit=True)
    first = Scores(course)
    first.take([1, 2])
    assert told(first.put_on(LLMDelta(text_delta="a"))) == (1, 2)
    first.take([3])  # the connection breaks before its piece came
    again = Scores(course)
    again.take([1])
    again.take([2, 3])
    assert told(again.put_on(LLMDelta(text_delta="b"))) == (3,)
    course.continuing = True
    further = Scores(course)
    further.take([4])
    assert told(further.put_on(LLMDelta(text_delta="c"))) == (4,)


def test_with_another_seed_they_begin_anew() -> None:
    course = Course(max_retries=1, emit=True)
    scores = Scores(course)
    scores.take([1])
    scores.put_on(LLMDelta(text_delta="a"))
    course.begin_anew()
    other = Scores(course)
    other.take([5])
    assert told(other.put_on(LLMDelta(text_delta="x"))) == (5,)
