"""The rounds of a search: candidates measured side by side, and how each of them stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from runtime.errors import LLMError
from runtime.tuning.candidates import DEFAULT
from runtime.tuning.choosing import Estimate, estimate, log_gain, order_of
from runtime.tuning.contest import Progress, Standing
from runtime.tuning.sameness import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from runtime.tuning.candidates import Candidate
    from runtime.tuning.contest import Arena, Measured, Stage
    from runtime.tuning.sameness import Fingerprint

ROUNDS_IN_BUDGET: Final = 45
"""The work of a round is made as long as it takes to get so many out of the time there is."""


@dataclass(slots=True, kw_only=True)
class Rounds:
    """Candidates under measurement. For one thread.

    Attributes:
        arena: Where they are tried.
        weights: How much each workload counts.
        budget_s: About how long all may take.
        same_answers: Refuse what does not answer as the default does.
        on_progress: Told how it goes.
        clock: Seconds, from any moment on.
        began_s: When it began, by that clock.
        standings: How each stands, by name.
        stage: What is being done.
        number: Rounds measured so far.
        round_s: Seconds that each candidate took for the last one.
        reference: What the default answers; None until :meth:`begin`.
    """

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

    def begin(self) -> None:
        """Ask the default for what all are compared with, and choose the work of a round.

        Raises:
            LLMError: The default does not work.
        """
        self.tell(DEFAULT.name)
        self.reference = self.arena.fingerprint(DEFAULT)
        self.round_s = self.arena.calibrate(self.budget_s / ROUNDS_IN_BUDGET)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self.clock() - self.began_s

    # --- measuring ----------------------------------------------------------------------------

    def answers_alike(self, candidate: Candidate) -> bool:
        """Whether a candidate may take part: it works, and answers as it has to."""
        self.tell(candidate.name)
        try:
            other = self.arena.fingerprint(candidate, self.reference)
        except LLMError as exc:
            self.drop(candidate, "refused", f"does not work: {exc.message}")
            return False
        assert self.reference is not None  # noqa: S101 - taken first of all
        differs = difference(self.reference, other)
        if differs and self.same_answers:
            self.drop(candidate, "refused", differs)
            return False
        self.set(candidate, state="in", note=differs or "")
        return True

    def joins(self, candidate: Candidate) -> bool:
        """Whether a candidate that comes late may take part."""
        self.standings[candidate.name] = Standing(candidate=candidate)
        return self.answers_alike(candidate)

    def measure(self, alive: Sequence[Candidate]) -> dict[str, Measured]:
        """One round of the default and these; what fails is refused and not in it.

        Raises:
            LLMError: The default failed.
        """
        by_name = {each.name: each for each in (DEFAULT, *alive)}
        measured: dict[str, Measured] = {}
        began_s = self.clock()
        for name in order_of(self.number, tuple(by_name)):
            self.tell(name)
            try:
                measured[name] = self.arena.measure(by_name[name], self.number)
            except LLMError as exc:
                if name == DEFAULT.name:
                    raise
                self.drop(by_name[name], "refused", f"failed: {exc.message}")
        self.round_s = (self.clock() - began_s) / len(by_name)
        self.number += 1
        default = measured[DEFAULT.name]
        for name in [name for name in measured if name != DEFAULT.name]:
            if self.same_answers and measured[name].texts != default.texts:
                self.drop(by_name[name], "refused", "gave another text")
                del measured[name]
        return measured

    def gains(
        self, measured: Mapping[str, Measured], against: str = DEFAULT.name
    ) -> dict[str, float]:
        """Logarithms of the gains in one round, by name."""
        reference = measured[against].seconds
        return {
            name: log_gain(reference, each.seconds, self.weights)
            for name, each in measured.items()
            if name != against
        }

    def series(
        self, rounds: Sequence[Mapping[str, Measured]], name: str, against: str = DEFAULT.name
    ) -> list[float]:
        """Logarithms of the gains of one candidate in the rounds that it was in."""
        return [self.gains(each, against)[name] for each in rounds if name in each]

    def estimate(
        self, rounds: Sequence[Mapping[str, Measured]], name: str, against: str = DEFAULT.name
    ) -> Estimate:
        """What these rounds say together about one candidate."""
        return estimate(self.series(rounds, name, against))

    # --- standings ----------------------------------------------------------------------------

    def drop(self, candidate: Candidate, state: Literal["refused", "out"], why: str) -> None:
        """It is not measured any more."""
        self.set(candidate, state=state, note=why)
        self.arena.drop(candidate)

    def set(self, candidate: Candidate, **changes: object) -> None:
        """Change fields of its standing."""
        before = self.standings[candidate.name]
        self.standings[candidate.name] = replace(before, **changes)  # type: ignore[arg-type]

    def set_gain(self, name: str, gains: Sequence[float]) -> None:
        """Show what its rounds say so far."""
        found = estimate(gains)
        self.set(self.standings[name].candidate, gain=found.gain, rounds=found.rounds)

    def are(self, state: str, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those of the candidates that stand so."""
        return [each for each in candidates if self.standings[each.name].state == state]

    def tell(self, at: str) -> None:
        """Show how it goes; ``at`` is who is at work."""
        self.on_progress(
            Progress(
                stage=self.stage,
                elapsed_s=self.elapsed_s,
                budget_s=self.budget_s,
                at=at,
                standings=tuple(self.standings.values()),
            )
        )
