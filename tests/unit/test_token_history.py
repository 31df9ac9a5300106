"""The tokens of each second, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime.contracts import LLMResponse, Usage
from runtime.gateway.history import TokenHistory


def tokens(history: TokenHistory, now_s: float) -> Any:
    return history.to_dict(now_s=now_s)["tokens"]


def test_only_whole_seconds_since_the_beginning_are_told() -> None:
    history = TokenHistory(seconds=5, now_s=100.9)
    assert tokens(history, 100.95) == []
    history.add(3, now_s=101.0)
    history.add(4, now_s=101.99)
    assert tokens(history, 101.999) == [0], "the second is not over"
    assert tokens(history, 102.0) == [0, 7]
    assert history.to_dict(now_s=102.0)["interval_s"] == 1


def test_silence_is_zeros_and_the_old_is_forgotten() -> None:
    history = TokenHistory(seconds=5, now_s=100)
    history.add(7, now_s=101)
    assert tokens(history, 106) == [7, 0, 0, 0, 0]
    assert tokens(history, 107) == [0] * 5
    history.add(9, now_s=1_000_000)
    assert tokens(history, 1_000_001) == [0, 0, 0, 0, 9]


def test_a_whole_answer_is_spread_over_the_time_it_took() -> None:
    history = TokenHistory(seconds=10, now_s=100)
    history.spread(30, since_s=101.5, now_s=104.5)
    assert tokens(history, 105) == [0, 5, 10, 10, 5]
    history.spread(8, since_s=105.2, now_s=105.3)
    assert tokens(history, 106)[-1] == 8


def test_pieces_count_at_once_and_the_rest_at_the_end() -> None:
    history = TokenHistory()
    meter = history.meter()
    for _ in range(3):
        meter.piece()
    meter.end(LLMResponse(text="", usage=Usage(completion_tokens=5)))
    other = history.meter()
    other.piece()
    other.end(LLMResponse(text=""))
    far = 2.0**31
    assert sum(history._ring) == 6
    assert sum(tokens(history, far)) == 0


@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 90), st.integers(0, 500)), max_size=20),
    st.integers(1, 40),
)
def test_nothing_is_lost_that_is_still_kept(
    answers: list[tuple[float, float, int]], seconds: int
) -> None:
    """However answers overlap and however long they took, no more is told than came."""
    history = TokenHistory(seconds=seconds, now_s=1000)
    now_s, all_tokens = 1000.0, 0
    for pause_s, took_s, count in answers:
        now_s += pause_s
        history.spread(count, since_s=max(1000.0, now_s - took_s), now_s=now_s)
        all_tokens += count
    told = tokens(history, now_s + 1)
    assert len(told) <= seconds
    assert sum(told) <= all_tokens + 0.05 * len(told) + 1e-6
    if now_s + 1 < 1000 + seconds:
        assert abs(sum(told) - all_tokens) <= 0.05 * len(told) + 1e-6
