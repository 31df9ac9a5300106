"""The search: which candidates are measured how often, and what is taken in the end.

First every candidate has to prove that it gives the default's answers. Then all are measured in
rounds, of which the better half goes on, and the best of each dimension are put together. What came
out is measured against the default in rounds of its own: those that chose it would flatter it. It
is taken only if those say that it is faster, by as much as is worth having; a choice that was kept
earlier is left only for one that is certainly faster, or when it is certainly not worth having.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Final

from runtime.tuning.candidates import DEFAULT, combined, in_turns
from runtime.tuning.choosing import (
    MIN_GAIN,
    Estimate,
    Verdict,
    decided,
    judge,
    rounds_needed,
    simplest_of_the_best,
    survivors,
)
from runtime.tuning.contest import NOT_TRIED, Outcome, Progress, Standing, summary
from runtime.tuning.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.tuning.candidates import Candidate
    from runtime.tuning.contest import Arena, Measured

_PROVING_SHARE: Final = 0.4
_SCREENING_SHARE: Final = 0.55
_SCREENING_ROUNDS: Final = 6
_LEAST_ROUNDS: Final = 2
"""One round alone tells more about the moment than about the candidates."""

_MOST_ROUNDS: Final = 40


def search(
    arena: Arena,
    candidates: Sequence[Candidate],
    *,
    weights: Mapping[str, float],
    budget_s: float,
    kept: Candidate | None = None,
    same_answers: bool = True,
    on_progress: Callable[[Progress], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Find what is faster than the default.

    Args:
        arena: Where to try.
        candidates: What to try, the simplest of each dimension first.
        weights: How much each workload counts.
        budget_s: About how long it may take.
        kept: What was taken the last time.
        same_answers: Refuse what does not answer as the default does.
        on_progress: Told how it goes.
        clock: Seconds, from any moment on.

    Raises:
        LLMError: The default itself does not work.
    """
    on = Rounds(
        arena=arena,
        weights=weights,
        budget_s=budget_s,
        same_answers=same_answers,
        on_progress=on_progress,
        clock=clock,
        began_s=clock(),
        standings={each.name: Standing(candidate=each) for each in candidates},
    )
    if not candidates and kept is None:
        return _outcome(on, [], [], None)
    on.begin()
    screened = _screen(on, _prove(on))
    finalists = _finalists(on, screened, kept)
    rounds = _decide(on, finalists)
    return _outcome(on, finalists, rounds, kept)


def _prove(on: Rounds) -> list[Candidate]:
    """Those that answer as the default does."""
    alive = []
    for candidate in in_turns([each.candidate for each in on.standings.values()]):
        if on.elapsed_s > _PROVING_SHARE * on.budget_s:
            on.drop(candidate, "out", NOT_TRIED)
        elif on.answers_alike(candidate):
            alive.append(candidate)
    return [each.candidate for each in on.standings.values() if each.candidate in alive]


def _screen(on: Rounds, alive: list[Candidate]) -> dict[str, list[float]]:
    """A few rounds of all, of which the better go on; the gains of all that were measured."""
    on.stage = "screening"
    until_s = max(
        _SCREENING_SHARE * on.budget_s,
        on.budget_s - rounds_needed() * 3 * on.round_s,
    )
    room = int((until_s - on.elapsed_s) / (_LEAST_ROUNDS * on.round_s)) - 1
    for each in in_turns(alive)[max(1, room) :]:
        on.drop(each, "out", NOT_TRIED)
    alive = on.are("in", alive)
    gains: dict[str, list[float]] = {each.name: [] for each in alive}
    for turn in range(_SCREENING_ROUNDS):
        next_s = (1 + len(alive)) * on.round_s
        if not alive or (turn >= _LEAST_ROUNDS and on.elapsed_s + next_s > until_s):
            break
        for name, gain in on.gains(on.measure(alive)).items():
            gains[name].append(gain)
            on.set_gain(name, gains[name])
        alive = on.are("in", alive)
        if turn % 2:
            left = {each.name: gains[each.name] for each in alive}
            staying = survivors(left, keep=max(2, -(-len(left) // 2)))
            for each in alive:
                if each.name not in staying:
                    on.drop(each, "out", "slower than others")
            alive = on.are("in", alive)
    return {name: each for name, each in gains.items() if each}


def _finalists(
    on: Rounds, screened: dict[str, list[float]], kept: Candidate | None
) -> list[Candidate]:
    """The best of each dimension together, and the best alone; and what was kept."""
    left = {name: gains for name, gains in screened.items() if on.standings[name].state == "in"}
    dimensions: dict[str, dict[str, list[float]]] = {}
    for name, gains in left.items():
        dimension = on.standings[name].candidate.dimension
        if min(gains) > 0:  # it has never yet been slower
            dimensions.setdefault(dimension, {})[name] = gains
    best = [simplest_of_the_best(each) for each in dimensions.values()]
    parts = tuple(on.standings[name].candidate for name in best if name is not None)
    _note_equals(on, screened, parts)
    finalists: list[Candidate] = []
    if parts:
        alone = max(parts, key=lambda part: statistics.median(screened[part.name]))
        finalists = [alone]
        if len(parts) > 1 and on.joins(together := combined(parts)):
            finalists = [together, alone]
    elif left:
        nearest = max(left, key=lambda name: statistics.median(left[name]))
        finalists = [on.standings[nearest].candidate]
    if kept is not None and kept.settings and kept.settings not in [f.settings for f in finalists]:
        known = [s.candidate for s in on.standings.values()]
        same = next((c for c in known if c.settings == kept.settings), None)
        if same is None and on.joins(kept):
            finalists.append(kept)
        elif same is not None and _comes_back(on, same):
            finalists.append(same)
    for standing in list(on.standings.values()):
        if standing.candidate not in finalists and standing.state == "in":
            why = standing.note if standing.equal_to else "not the best"
            on.drop(standing.candidate, "out", why)
    return finalists


def _comes_back(on: Rounds, kept: Candidate) -> bool:
    """Whether what was kept takes part to the end, though it did not stand out this time."""
    state = on.standings[kept.name].state
    return state == "in" or (state == "out" and on.answers_alike(kept))


def _note_equals(
    on: Rounds, screened: Mapping[str, list[float]], parts: tuple[Candidate, ...]
) -> None:
    """Say of those that give way to another of their dimension if they are not clearly slower."""
    for part in parts:
        for name, gains in screened.items():
            other = on.standings[name]
            if other.candidate.dimension != part.dimension or other.candidate == part:
                continue
            if other.state == "refused":
                continue
            ahead = [there - here for here, there in zip(gains, screened[part.name], strict=False)]
            if min(ahead) <= 0 or statistics.median(ahead) < math.log1p(MIN_GAIN):
                note = f"not certainly slower than {part.name}"
                on.set(other.candidate, note=note, equal_to=part.name)


def _decide(on: Rounds, finalists: list[Candidate]) -> list[dict[str, Measured]]:
    """Fresh rounds of the finalists until they tell, or the time is up."""
    on.stage = "deciding"
    rounds: list[dict[str, Measured]] = []
    for each in finalists:
        on.set(each, state="final", gain=None, rounds=0, note="")
    while finalists and len(rounds) < _MOST_ROUNDS:
        next_s = (1 + len(finalists)) * on.round_s
        if rounds and on.elapsed_s + next_s > on.budget_s:
            break
        rounds.append(on.measure(finalists))
        finalists = on.are("final", finalists)
        for each in finalists:
            on.set_gain(each.name, on.series(rounds, each.name))
        if all(decided(on.estimate(rounds, each.name)) for each in finalists):
            break
    return rounds


def _outcome(
    on: Rounds,
    finalists: list[Candidate],
    rounds: list[dict[str, Measured]],
    kept: Candidate | None,
) -> Outcome:
    left = on.are("final", finalists)
    estimates = {each.name: on.estimate(rounds, each.name) for each in left}
    taken = _taken(on, left, estimates, rounds, kept)
    equals = _equals(on, taken, left, rounds)
    if taken is not DEFAULT:
        on.set(taken, state="taken")
    on.stage = "done"
    on.tell(taken.name)
    return Outcome(
        taken=taken,
        summary=summary(taken, estimates, on.standings, kept=kept, equals=equals),
        standings=tuple(on.standings.values()),
        estimates=estimates,
        by_workload={
            each.name: {
                workload: statistics.median(
                    found[DEFAULT.name].seconds[workload] / found[each.name].seconds[workload]
                    for found in rounds
                    if each.name in found
                )
                - 1
                for workload in rounds[0][DEFAULT.name].seconds
            }
            for each in left
        },
        elapsed_s=on.elapsed_s,
    )


def _taken(
    on: Rounds,
    left: list[Candidate],
    estimates: Mapping[str, Estimate],
    rounds: list[dict[str, Measured]],
    kept: Candidate | None,
) -> Candidate:
    faster = [f for f in left if judge(estimates[f.name]) is Verdict.FASTER]
    held = next((f for f in left if kept and f.settings == kept.settings), None)
    standing = estimates[held.name] if held is not None else None
    if held and standing and standing.gain > 0 and judge(standing) is not Verdict.SAME:
        better = [
            f
            for f in faster
            if f is not held and judge(on.estimate(rounds, f.name, held.name)) is Verdict.FASTER
        ]
        return better[0] if better else held
    return max(faster, key=lambda f: estimates[f.name].gain, default=DEFAULT)


def _equals(
    on: Rounds, taken: Candidate, left: list[Candidate], rounds: list[dict[str, Measured]]
) -> list[str]:
    """What cannot be told from what is taken: another tuning might take it as well."""
    if taken is DEFAULT:
        return []
    abreast = [
        other.name
        for other in left
        if other is not taken and on.estimate(rounds, taken.name, other.name).low <= 0
    ]
    parts = [
        each.candidate.name
        for each in on.standings.values()
        if each.candidate.settings.items() <= taken.settings.items()
    ]
    gave_way = [name for name, each in on.standings.items() if each.equal_to in parts]
    measured = {each.name for each in left}  # of these more is known than of a few rounds
    return [*abreast, *(name for name in gave_way if name not in measured)]
