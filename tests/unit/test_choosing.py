"""Which of several settings is faster: what noise, drifts and busy spells must not decide."""

from __future__ import annotations

import math
import random
import statistics
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.tuning.choosing import (
    MIN_GAIN,
    Verdict,
    decided,
    estimate,
    judge,
    log_gain,
    order_of,
    rounds_needed,
    simplest_of_the_best,
    survivors,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_WEIGHTS = {"free": 1.0, "loop": 1.0}


def _measured(
    gain: float,
    rounds: int,
    *,
    seed: int,
    spread: float = 0.05,
    drift: float = 0.0,
    spells: float = 0.0,
    start: int = 0,
) -> list[float]:
    """Rounds of a machine that is noisy, grows slower, and is struck by busy spells of 10x."""
    dice = random.Random(seed)
    found = []
    at = 0
    for number in range(start, start + rounds):
        seconds: dict[str, dict[str, float]] = {}
        for name in order_of(number, ("default", "candidate")):
            factor = 1 / (1 + gain) if name == "candidate" else 1.0
            times = {}
            for workload in _WEIGHTS:
                busy = dice.uniform(2, 10) if dice.random() < spells else 1.0
                noise = math.exp(dice.gauss(0, spread))
                times[workload] = factor * noise * busy * (1 + drift * at)
                at += 1
            seconds[name] = times
        found.append(log_gain(seconds["default"], seconds["candidate"], _WEIGHTS))
    return found


def _until_decided(measure: Callable[[int], list[float]], most: int = 30) -> Verdict:
    gains = measure(most)
    for rounds in range(rounds_needed(), most + 1):
        found = estimate(gains[:rounds])
        if decided(found):
            return judge(found)
    return Verdict.OPEN


def test_fewer_rounds_than_needed_are_sure_of_nothing() -> None:
    found = estimate([0.5] * (rounds_needed() - 1))

    assert judge(found) is Verdict.OPEN
    assert found.low == -math.inf
    assert found.high == math.inf


def test_as_many_rounds_as_needed_that_agree_are_enough() -> None:
    found = estimate([0.5] * rounds_needed())

    assert judge(found) is Verdict.FASTER
    assert found.gain == pytest.approx(math.expm1(0.5))
    assert found.low == pytest.approx(math.expm1(0.5))


def test_the_interval_is_the_one_of_the_tables() -> None:
    """n = 10 at 95 %: the 9th of 55 means from each end (Hollander and others, table A.4)."""
    gains = [0.01 * n * n for n in range(1, 11)]
    means = sorted((gains[i] + gains[j]) / 2 for i in range(10) for j in range(i, 10))

    found = estimate(gains, confidence=0.95)

    assert math.log1p(found.low) == pytest.approx(means[8])
    assert math.log1p(found.high) == pytest.approx(means[-9])
    assert math.log1p(found.gain) == pytest.approx(statistics.median(means))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=12), st.floats(-1, 1))
def test_a_shift_of_all_shifts_the_estimate(gains: list[float], by: float) -> None:
    here, there = estimate(gains), estimate([gain + by for gain in gains])

    assert math.log1p(there.gain) == pytest.approx(math.log1p(here.gain) + by, abs=1e-9)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=12))
def test_swapping_the_two_sides_mirrors_the_estimate(gains: list[float]) -> None:
    here, there = estimate(gains), estimate([-gain for gain in gains])

    assert math.log1p(there.gain) == pytest.approx(-math.log1p(here.gain), abs=1e-9)
    if here.low > -math.inf:
        assert math.log1p(there.high) == pytest.approx(-math.log1p(here.low), abs=1e-9)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=12))
def test_the_estimate_lies_in_its_interval(gains: list[float]) -> None:
    found = estimate(gains)

    assert found.low <= found.gain <= found.high


def test_no_round_is_no_estimate() -> None:
    with pytest.raises(ValueError, match="no round"):
        estimate([])


def test_a_tenth_of_the_rounds_may_be_ruined() -> None:
    """A busy spell of ten times in two of twenty rounds leaves the estimate where it was."""
    steady = _measured(0.10, 20, seed=4, spread=0.02)
    ruined = [*steady[:-2], steady[-2] - 2.3, steady[-1] + 2.3]

    assert estimate(ruined).gain == pytest.approx(estimate(steady).gain, abs=0.01)
    assert judge(estimate(ruined)) is Verdict.FASTER


def test_what_is_as_fast_is_hardly_ever_taken_for_faster() -> None:
    """Of 300 comparisons of equals, looked at after every round, at most three in a hundred."""
    verdicts = [
        _until_decided(lambda n, s=seed: _measured(0.0, n, seed=s, spread=0.06))  # type: ignore[misc]
        for seed in range(300)
    ]

    assert verdicts.count(Verdict.FASTER) <= 9
    assert verdicts.count(Verdict.SAME) > 30


def test_a_real_gain_is_found_in_spite_of_noise_drift_and_spells() -> None:
    verdicts = [
        _until_decided(
            lambda n, s=seed: _measured(0.3, n, seed=s, drift=0.02, spells=0.05)  # type: ignore[misc]
        )
        for seed in range(60)
    ]

    assert verdicts.count(Verdict.FASTER) >= 57
    assert verdicts.count(Verdict.SLOWER) == 0


def test_a_drift_alone_makes_nobody_faster() -> None:
    """A machine that loses half its speed on the way strikes both alike."""
    verdicts = [
        _until_decided(lambda n, s=seed: _measured(0.0, n, seed=s, spread=0.01, drift=0.01))  # type: ignore[misc]
        for seed in range(60)
    ]

    assert Verdict.FASTER not in verdicts
    assert Verdict.SLOWER not in verdicts


def test_a_gain_that_is_not_worth_it_is_left() -> None:
    found = estimate([0.01 + 0.001 * (n % 3) for n in range(12)])

    assert found.low > 0
    assert judge(found) is Verdict.SAME


def test_what_may_be_worth_it_stays_open() -> None:
    found = estimate([0.04, -0.01] * 5)

    assert judge(found) is Verdict.OPEN


def test_what_is_slower_is_said_to_be() -> None:
    assert judge(estimate([-0.2] * 8)) is Verdict.SLOWER


def test_weights_decide_what_counts() -> None:
    reference = {"free": 2.0, "loop": 1.0}
    candidate = {"free": 1.0, "loop": 2.0}

    assert log_gain(reference, candidate, {"free": 1.0}) == pytest.approx(math.log(2))
    assert log_gain(reference, candidate, {"free": 1.0, "loop": 1.0}) == pytest.approx(0.0)
    assert log_gain(reference, candidate, {"free": 3.0, "loop": 1.0}) == pytest.approx(
        math.log(2) / 2
    )


@given(st.integers(1, 6), st.integers(0, 40))
def test_each_takes_part_once_a_round(count: int, number: int) -> None:
    names = tuple(f"n{i}" for i in range(count))

    assert sorted(order_of(number, names)) == sorted(names)


@given(st.integers(1, 6))
def test_over_a_cycle_each_is_as_early_as_the_others(count: int) -> None:
    names = tuple(f"n{i}" for i in range(count))
    places = dict.fromkeys(names, 0)
    for number in range(2 * count):
        for place, name in enumerate(order_of(number, names)):
            places[name] += place

    assert len(set(places.values())) == 1


def test_nobody_is_ordered_too() -> None:
    assert order_of(3, ()) == ()


def test_the_hopeless_and_the_worst_are_dropped() -> None:
    screened = {"a": [0.02, 0.03], "b": [-0.2, -0.3], "c": [0.3, 0.2], "d": [0.1, 0.1]}

    assert survivors(screened, keep=2) == ("c", "d")
    assert survivors(screened, keep=9) == ("a", "c", "d")


def test_among_equals_the_simplest_wins() -> None:
    close = MIN_GAIN / 2
    screened = {"simple": [0.20], "fancy": [0.20 + close], "odd": [0.01]}

    assert simplest_of_the_best(screened) == "simple"
    assert simplest_of_the_best({"simple": [0.1], "fancy": [0.3]}) == "fancy"


def test_where_nothing_gains_nothing_is_best() -> None:
    assert simplest_of_the_best({"a": [0.0, 0.01], "b": [-0.5]}) is None
    assert simplest_of_the_best({}) is None


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_two_tunings_never_contradict_each_other(seed: int) -> None:
    """Two series on one machine may differ in how sure they are, not in which side is faster."""
    gain = random.Random(seed).choice((-0.2, 0.0, 0.02, 0.2))
    first = _until_decided(lambda n: _measured(gain, n, seed=seed, spread=0.03))
    second = _until_decided(lambda n: _measured(gain, n, seed=seed + 10_001, spread=0.03))

    assert {first, second} not in (
        {Verdict.FASTER, Verdict.SLOWER},
        {Verdict.FASTER, Verdict.SAME} if gain in {0.0, 0.2} else set(),
    )
