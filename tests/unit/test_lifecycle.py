"""The state table: no sequence of events reaches an impossible state."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server.lifecycle import (
    RESTING_STATES,
    Event,
    ImpossibleTransitionError,
    State,
    accepts,
    next_state,
    restart_delay_s,
)
from runtime.server.restarts import Restarts
from runtime.settings import RestartPolicy


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_any_accepted_sequence_keeps_the_promises_of_the_table(events: list[Event]) -> None:
    state = State.STOPPED
    for event in events:
        if not accepts(state, event):
            with pytest.raises(ImpossibleTransitionError, match=event.value):
                next_state(state, event)
            continue
        before, state = state, next_state(state, event)
        if state is State.READY:
            loaded = {State.LOADING, State.SUSPECT}
            assert before in loaded or event is Event.PROMOTED, "nothing is ready that did not load"
        if event is Event.STOP:
            assert state in {State.STOPPED, State.STOPPING}
        if event is Event.DOOMED:
            assert state is State.FAILED


@pytest.mark.parametrize("state", [s for s in State if s not in RESTING_STATES | {State.STOPPING}])
def test_a_stop_is_possible_whenever_something_runs(state: State) -> None:
    assert next_state(state, Event.STOP) in {State.STOPPED, State.STOPPING}


@pytest.mark.parametrize("state", list(State))
def test_every_state_can_be_left_and_reached(state: State) -> None:
    assert any(accepts(state, event) for event in Event)
    assert state is State.STOPPED or any(
        accepts(other, event) and next_state(other, event) is state
        for other in State
        for event in Event
    )


def test_the_first_restart_is_at_once_and_later_ones_wait_with_full_jitter() -> None:
    policy = RestartPolicy()

    def delay(earlier: int, chance: float) -> float | None:
        return restart_delay_s(
            policy, now_s=100.0, earlier_s=[99.0] * earlier, ready_for_s=1.0, chance=chance
        )

    assert delay(0, 0.99) == 0.0
    assert delay(1, 0.5) == pytest.approx(0.5)  # half of 0.5 * 2
    assert delay(3, 0.0) == 0.0
    assert delay(4, 1.0) == pytest.approx(8.0)
    assert delay(5, 0.5) is None


def test_the_wait_is_bounded() -> None:
    policy = RestartPolicy(max_restarts=100)
    waited = restart_delay_s(policy, now_s=0.0, earlier_s=[0.0] * 60, ready_for_s=0.0, chance=1.0)
    assert waited == policy.backoff_max_s


def test_the_budget_forgets_old_restarts_and_starts_anew_after_a_stable_time() -> None:
    policy = RestartPolicy(max_restarts=2, window_s=300, stable_after_s=60)

    def delay(earlier_s: list[float], ready_for_s: float) -> float | None:
        return restart_delay_s(
            policy, now_s=1000.0, earlier_s=earlier_s, ready_for_s=ready_for_s, chance=0.0
        )

    assert delay([990.0, 995.0], 5.0) is None
    assert delay([600.0, 995.0], 5.0) == 0.0
    assert delay([990.0, 995.0], 60.0) == 0.0


def test_no_restart_when_switched_off() -> None:
    policy = RestartPolicy(enabled=False)
    assert restart_delay_s(policy, now_s=0, earlier_s=[], ready_for_s=None, chance=0) is None


def test_restarts_count_until_an_engine_has_held() -> None:
    restarts = Restarts(RestartPolicy(max_restarts=2, stable_after_s=60))
    assert restarts.next_delay_s(None) == 0.0
    assert restarts.next_delay_s(time.monotonic()) is not None
    assert restarts.next_delay_s(time.monotonic() - 59) is None

    assert restarts.next_delay_s(time.monotonic() - 60) == 0.0
    assert restarts.next_delay_s(None) is not None
    assert restarts.next_delay_s(None) is None

    restarts.forget()
    assert restarts.next_delay_s(None) == 0.0
