"""The search: which candidates are measured how often, and what is taken in the end.

First every candidate has to prove that it gives the default's answers. Then all are measured in
rounds, of which the better half goes on, and the best of each dimension are put together. What came
out is measured against the default in rounds of its own: those that chose it would flatter it. It
is taken only if those say that it is faster, by as much as is worth having; a choice that was kept
earlier is left only for one that is certainly faster, or when it is certainly not worth having.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from runtime.tuning.candidates import DEFAULT, combined
from runtime.tuning.choosing import (
    Estimate,
    Verdict,
    decided,
    judge,
    rounds_needed,
    simplest_of_the_best,
    survivors,
)
from runtime.tuning.contest import Outcome, Progress, Standing, summary
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
    on.begin()
    screened = _screen(on, _prove(on))
    finalists = _finalists(on, screened, kept)
    rounds = _decide(on, finalists)
    return _outcome(on, finalists, rounds, kept)


def _prove(on: Rounds) -> list[Candidate]:
    """Those that answer as the default does."""
    alive = []
    for standing in list(on.standings.values()):
        candidate = standing.candidate
        if on.elapsed_s > _PROVING_SHARE * on.budget_s:
            on.drop(candidate, "out", "not tried: the time was short")
        elif on.answers_alike(candidate):
            alive.append(candidate)
    return alive


def _screen(on: Rounds, alive: list[Candidate]) -> dict[str, list[float]]:
    """A few rounds of all, of which the better go on; the gains of those that are left."""
    on.stage = "screening"
    until_s = max(
        _SCREENING_SHARE * on.budget_s,
        on.budget_s - rounds_needed() * 3 * on.round_s,
    )
    room = int((until_s - on.elapsed_s) / (_LEAST_ROUNDS * on.round_s)) - 1
    for each in alive[max(1, room) :]:
        on.drop(each, "out", "not tried: the time was short")
    alive = alive[: max(1, room)]
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
    return {each.name: gains[each.name] for each in alive if gains[each.name]}


def _finalists(
    on: Rounds, screened: dict[str, list[float]], kept: Candidate | None
) -> list[Candidate]:
    """The best of each dimension together, and the best alone; and what was kept."""
    dimensions: dict[str, dict[str, list[float]]] = {}
    for name, gains in screened.items():
        dimension = on.standings[name].candidate.dimension
        if min(gains) > 0:  # it has never yet been slower
            dimensions.setdefault(dimension, {})[name] = gains
    best = [simplest_of_the_best(each) for each in dimensions.values()]
    parts = tuple(on.standings[name].candidate for name in best if name is not None)
    finalists: list[Candidate] = []
    if parts:
        alone = max(parts, key=lambda part: statistics.median(screened[part.name]))
        finalists = [alone]
        if len(parts) > 1 and on.joins(together := combined(parts)):
            finalists = [together, alone]
    elif screened:
        nearest = max(screened, key=lambda name: statistics.median(screened[name]))
        finalists = [on.standings[nearest].candidate]
    if kept is not None and kept.settings and kept.settings not in [f.settings for f in finalists]:
        known = [s.candidate for s in on.standings.values()]
        same = next((c for c in known if c.settings == kept.settings), None)
        if same is not None and on.standings[same.name].state in {"in", "out"}:
            finalists.append(same)
        elif same is None and on.joins(kept):
            finalists.append(kept)
    for standing in list(on.standings.values()):
        if standing.candidate not in finalists and standing.state == "in":
            on.drop(standing.candidate, "out", standing.note or "not the best")
    return finalists


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
    if taken is not DEFAULT:
        on.set(taken, state="taken")
    on.stage = "done"
    on.tell(taken.name)
    return Outcome(
        taken=taken,
        summary=summary(taken, estimates, on.standings),
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
