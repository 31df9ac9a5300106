"""The watchdog: slow is not stuck."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.server.watchdog import (
    SlotView,
    Watchdog,
    first_step_s,
    latest_task,
    slots_at_work,
)

# As xllamacpp 2026.10 answers in the middle of a prompt, and while it generates.
PREFILL = {
    "id": 0, "n_ctx": 8192, "speculative": False, "is_processing": True, "id_task": 3,
    "n_prompt_tokens": 1024, "n_prompt_tokens_processed": 512, "n_prompt_tokens_cache": 0,
    "next_token": [{"has_next_token": True, "n_remain": 60, "n_decoded": 0}],
}  # fmt: skip
IDLE = {"id": 1, "n_ctx": 8192, "speculative": False, "is_processing": False}


def at_work(done: int, task: int = 1) -> tuple[SlotView, ...]:
    return (SlotView(slot=0, task=task, prompt_done=done, decoded=0),)


def dog(first_s: float = 1.0) -> Watchdog:
    return Watchdog(floor_s=30.0, first_step_s=first_s, now_s=0.0)


def test_slots_are_read_as_the_engine_writes_them() -> None:
    assert slots_at_work([PREFILL, IDLE]) == (SlotView(slot=0, task=3, prompt_done=512, decoded=0),)
    assert slots_at_work({"error": "busy"}) is None
    assert slots_at_work("<html>") is None


def test_an_idle_engine_is_fine_for_ever() -> None:
    judge = dog()
    assert all(judge.look(now_s=t, cpu_s=0, slots=()) == "fine" for t in range(0, 10_000, 5))


def test_tokens_that_stand_still_are_suspect_then_stuck() -> None:
    judge = dog()
    judge.look(now_s=0, cpu_s=0, slots=at_work(5))
    verdicts = [judge.look(now_s=t, cpu_s=t, slots=at_work(5)) for t in (10, 16, 29, 30, 31)]
    assert verdicts == ["fine", "suspect", "suspect", "stuck", "stuck"]


def test_a_new_request_on_the_slot_is_movement() -> None:
    judge = dog()
    judge.look(now_s=0, cpu_s=0, slots=at_work(5, task=1))
    assert judge.look(now_s=29, cpu_s=29, slots=at_work(5, task=2)) == "fine"
    assert judge.look(now_s=40, cpu_s=40, slots=at_work(5, task=2)) == "fine"


@given(st.lists(st.floats(1.0, 3.9), min_size=1, max_size=40), st.floats(8.0, 200.0))
def test_steps_that_grow_less_than_fourfold_are_never_taken_for_stuck(
    growth: list[float], first_s: float
) -> None:
    """Slow prefill, each batch slower than the last, on a machine of unknown speed."""
    judge = dog(first_s=first_s)
    now = step_s = 0.0
    judge.look(now_s=0, cpu_s=0, slots=at_work(0))
    for number, factor in enumerate(growth, start=1):
        step_s = min(step_s * factor if step_s else first_s * 3.9, 1e6)
        for part in (0.3, 0.6, 0.99):
            at = now + part * step_s
            assert judge.look(now_s=at, cpu_s=at, slots=at_work(number - 1)) != "stuck"
        now += step_s
        assert judge.look(now_s=now, cpu_s=now, slots=at_work(number)) == "fine"


def test_a_starved_engine_is_slow_not_stuck() -> None:
    """It gets a tenth of a processor: its own time counts."""
    judge = dog()
    judge.look(now_s=0, cpu_s=0, slots=at_work(1))
    assert all(
        judge.look(now_s=t, cpu_s=t / 10, slots=at_work(1)) == "fine" for t in range(10, 290, 10)
    )
    assert judge.look(now_s=301, cpu_s=30.1, slots=at_work(1)) == "stuck"


def test_an_engine_that_answers_nothing_and_does_nothing_is_stuck_also_when_idle() -> None:
    judge = dog()
    judge.look(now_s=0, cpu_s=1, slots=())
    verdicts = [judge.look(now_s=t, cpu_s=1, slots=None) for t in (100, 110, 116, 131)]
    assert verdicts == ["fine", "fine", "suspect", "stuck"]
    assert judge.look(now_s=140, cpu_s=2, slots=()) == "fine"


def test_the_first_batch_of_a_large_model_has_its_time() -> None:
    """7 billion parameters, 512 tokens, one thread: an hour before it is given up."""
    step_s = first_step_s(parameters=7_000_000_000, batch=512, threads=1)
    assert step_s > 3000
    assert dog(step_s).limit_s == 4 * step_s


def test_the_latest_request_is_seen_in_idle_slots() -> None:
    """As xllamacpp 2026.10 shows them: a fresh slot, and one that has answered."""
    fresh = {"id": 0, "is_processing": False}
    answered = {"id": 1, "id_task": 3, "is_processing": False, "next_token": [{"n_decoded": 0}]}
    assert latest_task([fresh]) == -1
    assert latest_task([fresh, answered]) == 3
    assert latest_task([answered, {**answered, "id_task": 9}]) == 9
    assert latest_task("no list") == -1
