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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from runtime.errors import LLMError
from runtime.tuning.candidates import DEFAULT, combined
from runtime.tuning.choosing import (
    Estimate,
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
from runtime.tuning.contest import Outcome, Progress, Standing, summary
from runtime.tuning.sameness import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.tuning.candidates import Candidate
    from runtime.tuning.contest import Arena, Measured, Stage
    from runtime.tuning.sameness import Fingerprint

ROUNDS_IN_BUDGET: Final = 45
"""The work of a round is made as long as it takes to get so many out of the time there is."""

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
    hunt = _Search(
        arena=arena,
        weights=weights,
        budget_s=budget_s,
        same_answers=same_answers,
        on_progress=on_progress,
        clock=clock,
        began_s=clock(),
        standings={each.name: Standing(candidate=each) for each in candidates},
    )
    return hunt.run(kept)


@dataclass(slots=True, kw_only=True)
class _Search:
    arena: Arena
    weights: Mapping[str, float]
    budget_s: float
    same_answers: bool
    on_progress: Callable[[Progress], None]
    clock: Callable[[], float]
    began_s: float
    standings: dict[str, Standing]
    stage: Stage = "comparing answers"
    number: int = 0
    round_s: float = 0.0
    reference: Fingerprint | None = None

    def run(self, kept: Candidate | None) -> Outcome:
        self._tell(DEFAULT.name)
        self.reference = self.arena.fingerprint(DEFAULT)
        self.round_s = self.arena.calibrate(self.budget_s / ROUNDS_IN_BUDGET)
        alive = self._prove()
        screened = self._screen(alive)
        finalists = self._finalists(screened, kept)
        rounds = self._decide(finalists)
        return self._outcome(finalists, rounds, kept)

    # --- the same answers ---------------------------------------------------------------------

    def _prove(self) -> list[Candidate]:
        """Those that answer as the default does."""
        alive = []
        for standing in list(self.standings.values()):
            candidate = standing.candidate
            if self._elapsed() > _PROVING_SHARE * self.budget_s:
                self._set(candidate, state="out", note="not tried: the time was short")
            elif self._answers_alike(candidate):
                alive.append(candidate)
        return alive

    def _answers_alike(self, candidate: Candidate) -> bool:
        self._tell(candidate.name)
        try:
            other = self.arena.fingerprint(candidate, self.reference)
        except LLMError as exc:
            self._refuse(candidate, f"does not work: {exc.message}")
            return False
        assert self.reference is not None  # noqa: S101 - taken first of all
        differs = difference(self.reference, other)
        if differs and self.same_answers:
            self._refuse(candidate, differs)
            return False
        self._set(candidate, state="in", note=differs or "")
        return True

    # --- rounds -------------------------------------------------------------------------------

    def _screen(self, alive: list[Candidate]) -> dict[str, list[float]]:
        """A few rounds of all, of which the better go on; the gains of those that are left."""
        self.stage = "screening"
        until_s = max(
            _SCREENING_SHARE * self.budget_s,
            self.budget_s - rounds_needed() * 3 * self.round_s,
        )
        room = int((until_s - self._elapsed()) / (_LEAST_ROUNDS * self.round_s)) - 1
        for each in alive[max(1, room) :]:
            self._set(each, state="out", note="not tried: the time was short")
            self.arena.drop(each)
        alive = alive[: max(1, room)]
        gains: dict[str, list[float]] = {each.name: [] for each in alive}
        for turn in range(_SCREENING_ROUNDS):
            next_s = (1 + len(alive)) * self.round_s
            if not alive or (turn >= _LEAST_ROUNDS and self._elapsed() + next_s > until_s):
                break
            for name, gain in self._gains(self._round(alive)).items():
                gains[name].append(gain)
                self._set_gain(name, gains[name])
            alive = [each for each in alive if self.standings[each.name].state == "in"]
            if turn % 2:
                left = {each.name: gains[each.name] for each in alive}
                staying = survivors(left, keep=max(2, -(-len(left) // 2)))
                for each in [each for each in alive if each.name not in staying]:
                    self._set(each, state="out", note="slower than others")
                    self.arena.drop(each)
                alive = [each for each in alive if each.name in staying]
        return {each.name: gains[each.name] for each in alive if gains[each.name]}

    def _round(self, alive: Sequence[Candidate]) -> dict[str, Measured]:
        """One round of the default and these; what fails is refused and not in it."""
        by_name = {each.name: each for each in (DEFAULT, *alive)}
        measured: dict[str, Measured] = {}
        began_s = self.clock()
        for name in order_of(self.number, tuple(by_name)):
            self._tell(name)
            try:
                measured[name] = self.arena.measure(by_name[name], self.number)
            except LLMError as exc:
                if name == DEFAULT.name:
                    raise
                self._refuse(by_name[name], f"failed: {exc.message}")
        self.round_s = (self.clock() - began_s) / len(by_name)
        self.number += 1
        default = measured[DEFAULT.name]
        for name in [name for name in measured if name != DEFAULT.name]:
            if self.same_answers and measured[name].texts != default.texts:
                self._refuse(by_name[name], "gave another text")
                del measured[name]
        return measured

    def _gains(
        self, measured: Mapping[str, Measured], against: str = DEFAULT.name
    ) -> dict[str, float]:
        reference = measured[against].seconds
        return {
            name: log_gain(reference, each.seconds, self.weights)
            for name, each in measured.items()
            if name != against
        }

    # --- the final ----------------------------------------------------------------------------

    def _finalists(
        self, screened: dict[str, list[float]], kept: Candidate | None
    ) -> list[Candidate]:
        """The best of each dimension together, and the best alone; and what was kept."""
        dimensions: dict[str, dict[str, list[float]]] = {}
        for name, gains in screened.items():
            dimension = self.standings[name].candidate.dimension
            if min(gains) > 0:  # it has never yet been slower
                dimensions.setdefault(dimension, {})[name] = gains
        best = [simplest_of_the_best(each) for each in dimensions.values()]
        parts = tuple(self.standings[name].candidate for name in best if name is not None)
        finalists: list[Candidate] = []
        if parts:
            alone = max(parts, key=lambda part: statistics.median(screened[part.name]))
            finalists = [alone]
            if len(parts) > 1 and self._joins(together := combined(parts)):
                finalists = [together, alone]
        elif screened:
            nearest = max(screened, key=lambda name: statistics.median(screened[name]))
            finalists = [self.standings[nearest].candidate]
        if (
            kept is not None
            and kept.settings
            and kept.settings not in [f.settings for f in finalists]
        ):
            known = [s.candidate for s in self.standings.values()]
            same = next((c for c in known if c.settings == kept.settings), None)
            if same is not None and self.standings[same.name].state in {"in", "out"}:
                finalists.append(same)
            elif same is None and self._joins(kept):
                finalists.append(kept)
        for standing in list(self.standings.values()):
            if standing.candidate not in finalists and standing.state == "in":
                self._set(standing.candidate, state="out", note=standing.note or "not the best")
                self.arena.drop(standing.candidate)
        return finalists

    def _joins(self, candidate: Candidate) -> bool:
        self.standings[candidate.name] = Standing(candidate=candidate)
        return self._answers_alike(candidate)

    def _decide(self, finalists: list[Candidate]) -> list[dict[str, Measured]]:
        """Fresh rounds of the finalists until they tell, or the time is up."""
        self.stage = "deciding"
        rounds: list[dict[str, Measured]] = []
        for each in finalists:
            self._set(each, state="final", gain=None, rounds=0, note="")
        while finalists and len(rounds) < _MOST_ROUNDS:
            next_s = (1 + len(finalists)) * self.round_s
            if rounds and self._elapsed() + next_s > self.budget_s:
                break
            rounds.append(self._round(finalists))
            finalists = [f for f in finalists if self.standings[f.name].state == "final"]
            for each in finalists:
                self._set_gain(each.name, self._series(rounds, each.name))
            if all(decided(self._estimate(rounds, each.name)) for each in finalists):
                break
        return rounds

    def _series(
        self, rounds: Sequence[Mapping[str, Measured]], name: str, against: str = DEFAULT.name
    ) -> list[float]:
        return [self._gains(each, against)[name] for each in rounds if name in each]

    def _estimate(
        self, rounds: Sequence[Mapping[str, Measured]], name: str, against: str = DEFAULT.name
    ) -> Estimate:
        return estimate(self._series(rounds, name, against))

    # --- the choice ---------------------------------------------------------------------------

    def _outcome(
        self,
        finalists: list[Candidate],
        rounds: list[dict[str, Measured]],
        kept: Candidate | None,
    ) -> Outcome:
        left = [f for f in finalists if self.standings[f.name].state == "final"]
        estimates = {each.name: self._estimate(rounds, each.name) for each in left}
        taken = self._taken(left, estimates, rounds, kept)
        if taken is not DEFAULT:
            self._set(taken, state="taken")
        self.stage = "done"
        self._tell(taken.name)
        return Outcome(
            taken=taken,
            summary=summary(taken, estimates, self.standings),
            standings=tuple(self.standings.values()),
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
            elapsed_s=self._elapsed(),
        )

    def _taken(
        self,
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
                if f is not held
                and judge(self._estimate(rounds, f.name, held.name)) is Verdict.FASTER
            ]
            return better[0] if better else held
        return max(faster, key=lambda f: estimates[f.name].gain, default=DEFAULT)

    # --- bookkeeping --------------------------------------------------------------------------

    def _refuse(self, candidate: Candidate, why: str) -> None:
        self._set(candidate, state="refused", note=why)
        self.arena.drop(candidate)

    def _set(self, candidate: Candidate, **changes: object) -> None:
        before = self.standings[candidate.name]
        self.standings[candidate.name] = replace(before, **changes)  # type: ignore[arg-type]

    def _set_gain(self, name: str, gains: Sequence[float]) -> None:
        found = estimate(gains)
        self._set(self.standings[name].candidate, gain=found.gain, rounds=found.rounds)

    def _elapsed(self) -> float:
        return self.clock() - self.began_s

    def _tell(self, at: str) -> None:
        self.on_progress(
            Progress(
                stage=self.stage,
                elapsed_s=self._elapsed(),
                budget_s=self.budget_s,
                at=at,
                standings=tuple(self.standings.values()),
            )
        )
