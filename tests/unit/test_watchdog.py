"""The watchdog: slow is not stuck."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.server.watchdog import (
    SlotView,
    Watchdog,
    latest_task,
    slots_at_work,
    slowest_token_s,
)

# As xllamacpp 2026.10 answers in the middle of a prompt, and while it generates.
PREFILL = {
    "id": 0, "n_ctx": 8192, "speculative": False, "is_processing": True, "id_task": 3,
    "n_prompt_tokens": 1024, "n_prompt_tokens_processed": 512, "n_prompt_tokens_cache": 0,
    "next_token": [{"has_next_token": True, "n_remain": 60, "n_decoded": 0}],
}  # fmt: skip
IDLE = {"id": 1, "n_ctx": 8192, "speculative": False, "is_processing": False}


BATCH = 512


def at_work(done: int, task: int = 1, *, decoded: int = 0, prompt: int = 0) -> tuple[SlotView, ...]:
    return (SlotView(slot=0, task=task, prompt_done=done, decoded=decoded, prompt=prompt),)


def dog(token_s: float = 0.002, *, threads: int = 1) -> Watchdog:
    """One whose first batch may take 1 s, if not told otherwise."""
    return Watchdog(floor_s=30.0, token_s=token_s, batch=BATCH, threads=threads, now_s=0.0)


def test_slots_are_read_as_the_engine_writes_them() -> None:
    assert slots_at_work([PREFILL, IDLE]) == (
        SlotView(slot=0, task=3, prompt_done=512, decoded=0, prompt=1024),
    )
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


@settings(deadline=None)
@given(st.lists(st.floats(1.0, 3.9), min_size=1, max_size=40), st.floats(0.05, 1.0))
def test_batches_that_grow_less_than_fourfold_are_never_taken_for_stuck(
    growth: list[float], token_s: float
) -> None:
    """Slow prefill, each batch slower than the last, on a machine of unknown speed."""
    judge = dog(token_s)
    now = step_s = 0.0
    judge.look(now_s=0, cpu_s=0, slots=at_work(0))
    for number, factor in enumerate(growth, start=1):
        step_s = min(step_s * factor if step_s else token_s * BATCH * 0.99, 1e6)
        for part in (0.3, 0.6, 0.99):
            at = now + part * step_s
            slots = at_work(BATCH * (number - 1))
            assert judge.look(now_s=at, cpu_s=at, slots=slots) != "stuck"
        now += step_s
        assert judge.look(now_s=now, cpu_s=now, slots=at_work(BATCH * number)) == "fine"


@settings(deadline=None)  # a busy machine is no fault
@given(
    parameters=st.floats(1e8, 1e11),
    threads=st.integers(1, 64),
    flops=st.floats(6e8, 1e12),
    prompts=st.lists(st.integers(1, 20_000), min_size=1, max_size=6),
    share=st.floats(0.001, 1.0),
    written=st.integers(1, 4),
)
def test_a_machine_that_only_computes_is_never_taken_for_stuck(
    parameters: float, threads: int, flops: float, prompts: list[int], share: float, written: int
) -> None:
    """Whatever its speed above a bare minimum, whatever share of the processors it gets, whatever
    the lengths of its prompts in whatever order: also a long one after a short one."""
    token_s = 2 * parameters / (flops * threads)  # processor time, all threads at work
    judge = dog(slowest_token_s(parameters=int(parameters), threads=threads), threads=threads)
    now = cpu = 0.0

    def work(cost_s: float, slots: tuple[SlotView, ...]) -> None:
        nonlocal now, cpu
        for _ in range(16):
            now += cost_s / share / 16
            cpu += cost_s * threads / 16
            assert judge.look(now_s=now, cpu_s=cpu, slots=slots, asleep=False) != "stuck"

    for task, prompt in enumerate(prompts):
        done = 0
        judge.look(now_s=now, cpu_s=cpu, slots=at_work(0, task, prompt=prompt))
        while done < prompt:
            tokens = min(BATCH, prompt - done)
            work(token_s * tokens, at_work(done, task, prompt=prompt))
            done += tokens
            judge.look(now_s=now, cpu_s=cpu, slots=at_work(done, task, prompt=prompt))
        for decoded in range(written):
            seen = at_work(done, task, decoded=decoded, prompt=prompt)
            judge.look(now_s=now, cpu_s=cpu, slots=seen)
            work(token_s, seen)
        judge.look(now_s=now, cpu_s=cpu, slots=())


def test_a_starved_engine_is_slow_not_stuck() -> None:
    """It gets a tenth of a processor: its own time counts."""
    judge = dog()
    judge.look(now_s=0, cpu_s=0, slots=at_work(1))
    verdicts = [
        judge.look(now_s=t, cpu_s=t / 10, slots=at_work(1)) for t in (100, 149, 151, 299, 301)
    ]
    assert verdicts == ["fine", "fine", "suspect", "suspect", "stuck"]


def test_a_thread_that_wants_to_run_and_may_not_is_starved_not_stuck() -> None:
    """At nice 19 beside others it may get less than a hundredth of a processor."""
    judge = dog()
    judge.look(now_s=0, cpu_s=0, slots=at_work(1), asleep=False)
    assert judge.look(now_s=3000, cpu_s=3, slots=at_work(1), asleep=False) == "fine"
    judge = dog()
    judge.look(now_s=0, cpu_s=0, slots=at_work(1))
    assert judge.look(now_s=3000, cpu_s=3, slots=at_work(1)) == "stuck", "where nobody can see it"


def test_an_engine_that_answers_nothing_and_does_nothing_is_stuck_also_when_idle() -> None:
    judge = dog()
    judge.look(now_s=0, cpu_s=1, slots=())
    verdicts = [judge.look(now_s=t, cpu_s=1, slots=None) for t in (100, 110, 116, 131)]
    assert verdicts == ["fine", "fine", "suspect", "stuck"]
    assert judge.look(now_s=140, cpu_s=2, slots=()) == "fine"


SEVEN_B_S = slowest_token_s(parameters=7_000_000_000, threads=1)


def test_the_first_batch_of_a_large_model_has_its_time() -> None:
    """7 billion parameters, 512 tokens, one thread that computes: four hours."""
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=0, slots=at_work(0, prompt=4000))
    assert judge.limit_s == SEVEN_B_S * BATCH == 14336
    assert judge.look(now_s=3000, cpu_s=3000, slots=at_work(0, prompt=4000)) == "fine"


def test_a_short_first_prompt_is_given_less_time_than_a_batch() -> None:
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=0, slots=at_work(0, prompt=20))
    assert judge.limit_s == SEVEN_B_S * 20 == 560
    assert judge.look(now_s=561, cpu_s=561, slots=at_work(0, prompt=20)) == "stuck"


def test_more_threads_are_given_less_time() -> None:
    eight_s = slowest_token_s(parameters=7_000_000_000, threads=8)
    assert eight_s == SEVEN_B_S / 8


def test_a_freeze_in_the_first_batch_of_a_large_model_is_found_at_the_floor() -> None:
    """Every thread sleeps or is stopped: nothing will come of waiting for hours."""
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=5, slots=at_work(0, prompt=4000))
    verdicts = [
        judge.look(now_s=t, cpu_s=5.0, slots=at_work(0, prompt=4000), asleep=True)
        for t in (10, 16, 29, 31)
    ]
    assert verdicts == ["fine", "suspect", "suspect", "stuck"]
    assert "for 31 s, and every thread sleeps (limit 30 s)" in judge.reason(31)


def test_a_thread_that_just_answers_does_not_hide_a_freeze() -> None:
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=5, slots=at_work(0))
    verdicts = [
        judge.look(now_s=t, cpu_s=5 + t / 1000, slots=at_work(0), asleep=t % 8 > 0)
        for t in range(1, 41)
    ]
    assert verdicts.index("stuck") < 38
    assert "fine" not in verdicts[verdicts.index("suspect") :], "no coming and going"


def test_it_must_sleep_nearly_all_the_time_to_be_taken_for_frozen() -> None:
    """Starved to nothing by others, a thread is still runnable whenever it is looked at."""
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=5, slots=at_work(0))
    for t in range(1, 2000, 4):
        asleep = t // 4 % 2 > 0
        assert judge.look(now_s=t, cpu_s=5.0, slots=at_work(0), asleep=asleep) == "fine"
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=5, slots=at_work(0))
    for t in range(1, 2000, 10):  # always caught asleep, but it has used 2 % of a processor
        assert judge.look(now_s=t, cpu_s=5 + t / 50, slots=at_work(0), asleep=True) == "fine"


def test_a_long_prompt_after_a_short_answer_has_its_time() -> None:
    """A step of an answer says nothing about a batch of 512 tokens."""
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=0, slots=at_work(40, decoded=1, prompt=40))
    judge.look(now_s=1, cpu_s=1, slots=at_work(40, decoded=2, prompt=40))
    assert judge.limit_s == 30
    judge.look(now_s=2, cpu_s=2, slots=at_work(0, task=2, prompt=4000))
    assert judge.look(now_s=1000, cpu_s=1000, slots=at_work(0, task=2, prompt=4000)) == "fine"


def test_a_measured_batch_takes_the_place_of_the_guess() -> None:
    judge = dog(SEVEN_B_S)
    judge.look(now_s=0, cpu_s=0, slots=at_work(0, prompt=4000))
    judge.look(now_s=20, cpu_s=20, slots=at_work(BATCH, prompt=4000))
    assert judge.limit_s == 80  # four times as long as the last
    judge.look(now_s=30, cpu_s=30, slots=at_work(3840, prompt=4000))
    assert judge.limit_s == 30  # 160 tokens are left


def test_an_answer_is_measured_by_its_steps() -> None:
    judge = dog(0.0)
    judge.look(now_s=0, cpu_s=0, slots=at_work(40, decoded=1))
    judge.look(now_s=25, cpu_s=25, slots=at_work(40, decoded=2))
    assert judge.limit_s == 100


def test_the_latest_request_is_seen_in_idle_slots() -> None:
    """As xllamacpp 2026.10 shows them: a fresh slot, and one that has answered."""
    fresh = {"id": 0, "is_processing": False}
    answered = {"id": 1, "id_task": 3, "is_processing": False, "next_token": [{"n_decoded": 0}]}
    assert latest_task([fresh]) == -1
    assert latest_task([fresh, answered]) == 3
    assert latest_task([answered, {**answered, "id_task": 9}]) == 9
    assert latest_task("no list") == -1
