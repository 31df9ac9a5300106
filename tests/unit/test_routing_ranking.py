"""Which model a request goes to, and which models stay in memory: the pure parts of routing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.client._ranking import Candidate, Speed, Task, effective_parameters, rank
from runtime.client._residency import Resident, admit, next_due, overdue

GIB = 1 << 30


def speed(decode: float, **changes: Any) -> Speed:
    return Speed(
        **{
            "prompt_tokens_per_s": decode * 10,
            "decode_tokens_per_s": decode,
            "load_s": 1.0,
            "answer_tokens": None,
            "basis": "measured",
            **changes,
        }
    )


SMALL = Candidate(
    name="small", tags=("fast",), loaded=True, parameters=135_000_000, quantization="Q4_1",
    needed_bytes=GIB // 4, speed=speed(100.0),
)  # fmt: skip
LARGE = Candidate(
    name="large", tags=("code", "fast"), parameters=8_000_000_000, quantization="Q4_K_M",
    needed_bytes=6 * GIB, usd_per_million_tokens=2.0, speed=speed(5.0),
)  # fmt: skip


def ranked(task: Task, *candidates: Candidate, budget: int = 8 * GIB) -> list[str]:
    found = rank(candidates or (SMALL, LARGE), task, budget_bytes=budget)
    return [each.candidate.name for each in found.order]


def task(**wanted: Any) -> Task:
    return Task(**{"prompt_tokens": 100, "max_tokens": 100, **wanted})


# --- priorities -------------------------------------------------------------------------------


def test_latency_takes_the_fastest_and_quality_the_largest() -> None:
    assert ranked(task(priority="latency")) == ["small", "large"]
    assert ranked(task(priority="quality")) == ["large", "small"]
    assert ranked(task(priority="latency"), LARGE, SMALL) == ["small", "large"], "as listed or not"


def test_time_counts_loading() -> None:
    """100 tokens at 100/s take a second; those at 50/s take two, but need not be loaded first."""
    cold = replace(SMALL, name="cold", loaded=False, speed=speed(100.0, load_s=3.0))
    warm = replace(SMALL, name="warm", speed=speed(50.0))
    assert ranked(task(priority="latency"), cold, warm) == ["warm", "cold"]
    brief = replace(cold, speed=speed(100.0, load_s=0.1))
    assert ranked(task(priority="latency"), warm, brief) == ["cold", "warm"]


def test_time_counts_the_prompt() -> None:
    reader = replace(SMALL, name="reader", speed=speed(50.0, prompt_tokens_per_s=1000.0))
    writer = replace(SMALL, name="writer", speed=speed(60.0, prompt_tokens_per_s=100.0))
    assert ranked(task(priority="latency", prompt_tokens=1), reader, writer)[0] == "writer"
    assert ranked(task(priority="latency", prompt_tokens=1000), reader, writer)[0] == "reader"


def test_room_goes_before_everything() -> None:
    """For prompt and answer, then for the prompt alone, then the largest context."""
    tiny = replace(SMALL, name="tiny", context_tokens=50)
    short = replace(SMALL, name="short", context_tokens=90)
    middle = replace(SMALL, name="middle", context_tokens=150)
    long = replace(LARGE, name="long", context_tokens=200)
    unknown = replace(LARGE, name="unknown", context_tokens=None)
    asked = task(priority="latency")
    assert ranked(asked, tiny, short, middle, long) == ["long", "middle", "short", "tiny"]
    assert ranked(asked, short, unknown) == ["unknown", "short"], "what is not known excludes none"
    brief = task(priority="latency", prompt_tokens=40, max_tokens=10)
    assert ranked(brief, long, tiny) == ["tiny", "long"], "50 of 50 are enough"
    open_end = replace(brief, max_tokens=None)
    assert ranked(open_end, long, tiny) == ["long", "tiny"], "a quarter is kept for an answer"
    found = rank([tiny, middle, long], asked, budget_bytes=8 * GIB)
    assert [each.note()["lacks_room_for"] for each in found.order] == [None, "answer", "prompt"]


def test_quality_counts_a_size_class_and_within_it_the_time() -> None:
    """7 and 8 billion parameters are of one class, 3 billion are not."""
    eight = replace(LARGE, name="8b", speed=speed(4.0))
    seven = replace(LARGE, name="7b", parameters=7_000_000_000, speed=speed(5.0))
    three = replace(LARGE, name="3b", parameters=3_000_000_000, speed=speed(50.0))
    assert ranked(task(priority="quality"), eight, three, seven) == ["7b", "8b", "3b"]


def test_bits_below_four_make_a_model_smaller() -> None:
    assert effective_parameters(8, "Q4_K_M") == effective_parameters(8, "F16") == 8
    assert effective_parameters(8, "IQ2_XS") == effective_parameters(8, "Q2_K") == 4
    assert effective_parameters(8, None) == 8
    crushed = replace(LARGE, name="8b at 2 bits", quantization="Q2_K")
    six = replace(LARGE, name="6b", parameters=6_000_000_000)
    assert ranked(task(priority="quality"), crushed, six)[0] == "6b"


def test_cost_takes_the_cheapest_then_the_least_memory_held() -> None:
    assert ranked(task(priority="cost"), LARGE, SMALL) == ["small", "large"]
    free = replace(LARGE, usd_per_million_tokens=0.0)
    priced = replace(SMALL, usd_per_million_tokens=0.001)
    assert ranked(task(priority="cost"), priced, free) == ["large", "small"], (
        "the price comes first"
    )
    thin = replace(SMALL, name="thin", needed_bytes=SMALL.needed_bytes or 0, speed=speed(200.0))
    assert ranked(task(priority="cost"), SMALL, thin) == ["thin", "small"]


def test_balanced_allows_twice_the_model_twice_the_time() -> None:
    double = replace(SMALL, name="double", parameters=270_000_000)
    assert ranked(task(), SMALL, replace(double, speed=speed(60.0)))[0] == "double"
    assert ranked(task(), SMALL, replace(double, speed=speed(40.0)))[0] == "small"


def test_what_nothing_is_known_of_comes_last_and_is_not_excluded() -> None:
    unknown = Candidate(name="unknown")
    for priority in ("latency", "quality", "balanced"):
        assert ranked(task(priority=priority), unknown, SMALL) == ["small", "unknown"], priority
    assert ranked(task(), unknown) == ["unknown"]


def test_equals_keep_the_order_in_which_they_were_listed() -> None:
    twin = replace(SMALL, name="twin")
    assert ranked(task(), twin, SMALL) == ["twin", "small"]
    assert ranked(task(), SMALL, twin) == ["small", "twin"]


# --- exclusions -------------------------------------------------------------------------------


def excluded(wanted: Task, *candidates: Candidate, budget: int = 8 * GIB) -> Any:
    return dict(rank(candidates or (SMALL, LARGE), wanted, budget_bytes=budget).excluded)


def test_every_tag_must_be_carried() -> None:
    assert ranked(task(tags=("code", "fast"))) == ["large"]
    assert excluded(task(tags=("code", "fast"))) == {"small": "it does not carry 'code'"}
    assert ranked(task(tags=("code", "prose"))) == []


def test_what_measurement_says_is_too_slow_is_excluded() -> None:
    """large: 1 s to load, 2 s for the prompt, 20 s for the answer."""
    reason = "by measurement it takes 23,000 ms, over 22,999 ms"
    assert excluded(task(max_latency_ms=22_999)) == {"large": reason}
    assert excluded(task(max_latency_ms=23_000)) == {}


def test_an_estimate_excludes_nothing() -> None:
    guessed = replace(LARGE, speed=speed(5.0, basis="estimated"))
    assert excluded(task(max_latency_ms=10), guessed) == {}
    assert excluded(task(max_latency_ms=10), Candidate(name="unknown")) == {}


def test_the_length_of_an_answer_is_its_bound_else_what_was_usual() -> None:
    usual = replace(SMALL, speed=speed(100.0, answer_tokens=10.0))
    bounded = rank([usual], task(max_tokens=50), budget_bytes=GIB).order[0]
    free = rank([usual], task(max_tokens=None), budget_bytes=GIB).order[0]
    unknown = rank([SMALL], task(max_tokens=None), budget_bytes=GIB).order[0]
    assert bounded.expected_ms == pytest.approx(100 + 500)
    assert free.expected_ms == pytest.approx(100 + 100)
    assert unknown.expected_ms == pytest.approx(100 + 2560)


def test_cost_and_memory_have_bounds() -> None:
    assert excluded(task(max_cost_usd=0.0)) == {
        "large": "it may cost 0.000400 USD, over 0.0 USD",
    }
    assert excluded(task(), budget=GIB) == {
        "large": "it needs 6,144 MiB and the memory budget is 1,024 MiB",
    }


def test_a_model_for_embeddings_answers_nothing() -> None:
    assert excluded(task(), replace(SMALL, answers=False)) == {
        "small": "it makes embeddings, not answers"
    }


def test_the_note_holds_the_numbers() -> None:
    note = rank([LARGE], task(), budget_bytes=8 * GIB).order[0].note()
    assert note == {
        "model": "large", "size_class": 6, "loaded": False, "expected_ms": 23_000,
        "cost_usd": 0.0004, "basis": "measured", "prompt_tokens_per_s": 50.0,
        "decode_tokens_per_s": 5.0, "load_s": 1.0, "context_tokens": None, "lacks_room_for": None,
    }  # fmt: skip


names = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6)
candidates = names.flatmap(
    lambda chosen: st.tuples(
        *(
            st.builds(
                Candidate,
                name=st.just(name),
                tags=st.lists(st.sampled_from(["x", "y"]), unique=True).map(tuple),
                loaded=st.booleans(),
                answers=st.booleans(),
                parameters=st.none() | st.integers(1, 10**12),
                quantization=st.none() | st.sampled_from(["Q2_K", "Q4_K_M", "F16"]),
                needed_bytes=st.none() | st.integers(0, 16 * GIB),
                usd_per_million_tokens=st.floats(0, 100),
                speed=st.none()
                | st.builds(
                    speed,
                    st.floats(0.01, 1e5),
                    load_s=st.floats(0, 1000),
                    basis=st.sampled_from(["measured", "estimated"]),
                ),
            )
            for name in chosen
        )
    )
)
tasks = st.builds(
    Task,
    prompt_tokens=st.integers(1, 10**6),
    max_tokens=st.none() | st.integers(1, 10**5),
    priority=st.sampled_from(["latency", "quality", "cost", "balanced"]),
    tags=st.lists(st.sampled_from(["x", "y"]), unique=True).map(tuple),
    max_cost_usd=st.none() | st.floats(0, 10),
    max_latency_ms=st.none() | st.integers(0, 10**6),
)


@given(candidates, tasks)
def test_every_candidate_is_ranked_or_excluded_and_keeps_what_was_demanded(
    given_candidates: tuple[Candidate, ...], wanted: Task
) -> None:
    found = rank(given_candidates, wanted, budget_bytes=8 * GIB)
    order = [each.candidate.name for each in found.order]
    assert sorted([*order, *found.excluded]) == sorted(each.name for each in given_candidates)
    for each in found.order:
        candidate = each.candidate
        assert candidate.answers
        assert set(wanted.tags) <= set(candidate.tags)
        assert (candidate.needed_bytes or 0) <= 8 * GIB
        assert wanted.max_cost_usd is None or each.cost_usd <= wanted.max_cost_usd
        if candidate.speed and candidate.speed.basis == "measured":
            assert wanted.max_latency_ms is None or (each.expected_ms or 0) <= wanted.max_latency_ms
    if wanted.priority == "latency":
        times = [each.expected_ms for each in found.order if each.expected_ms is not None]
        assert times == sorted(times)


# --- who stays --------------------------------------------------------------------------------


def resident(name: str, held: int, idle_since: float | None) -> Resident:
    return Resident(name=name, held_bytes=held, idle_since=idle_since)


def test_the_longest_unused_goes_first_and_none_without_need() -> None:
    table = [resident("new", 4, 30.0), resident("old", 4, 10.0), resident("used", 4, None)]
    assert admit(table, 4, 16).verdict == "load"
    assert admit(table, 5, 16).unload == ("old",)
    assert admit(table, 9, 16).unload == ("old", "new")
    assert admit(table, 13, 16).verdict == "wait"
    assert admit(table, 17, 16).verdict == "never"


def test_what_a_larger_one_made_needless_stays() -> None:
    """The old small one alone would not do; with the large one gone it need not go."""
    table = [resident("small", 1, 10.0), resident("large", 8, 20.0)]
    assert admit(table, 8, 10).unload == ("large",)


residents = st.lists(
    st.tuples(st.integers(0, 100), st.none() | st.floats(0, 1000)), max_size=8
).map(lambda rows: [resident(str(i), *row) for i, row in enumerate(rows)])


@given(residents, st.integers(0, 200), st.integers(0, 300))
def test_admission_keeps_the_budget_and_spares_what_is_in_use(
    table: list[Resident], needed: int, budget: int
) -> None:
    admission = admit(table, needed, budget)
    by_name = {each.name: each for each in table}
    going = [by_name[name] for name in admission.unload]
    assert all(each.idle_since is not None for each in going)
    held = sum(each.held_bytes for each in table)
    freed = sum(each.held_bytes for each in going)
    match admission.verdict:
        case "load":
            assert held + needed <= budget
            assert not going
        case "unload":
            assert held - freed + needed <= budget
            for each in going:
                assert held - freed + each.held_bytes + needed > budget, "it went without need"
        case "wait":
            assert needed <= budget
            busy = sum(each.held_bytes for each in table if each.idle_since is None)
            assert busy + needed > budget
        case "never":
            assert needed > budget


@given(residents, st.floats(0, 2000), st.floats(0.1, 500))
def test_what_is_overdue_is_what_was_idle_for_so_long(
    table: list[Resident], now: float, timeout: float
) -> None:
    kept = resident("kept", 1, 0.0)
    table = [kept, *(replace(each, idle_timeout_s=timeout) for each in table)]
    due = set(overdue(table, now))
    assert kept.name not in due
    for each in table[1:]:
        idle = each.idle_since is not None and now >= each.idle_since + timeout
        assert (each.name in due) == idle
    at = next_due(table[1:])
    assert (at is None) == all(each.idle_since is None for each in table[1:])
