"""What a search for faster settings is about: where candidates are tried, and how they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from runtime.tuning.candidates import DEFAULT
from runtime.tuning.choosing import MIN_GAIN, Estimate, Verdict, judge, rounds_needed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.tuning.candidates import Candidate
    from runtime.tuning.sameness import Fingerprint

Stage = Literal["comparing answers", "screening", "deciding", "done"]
State = Literal["waiting", "in", "refused", "out", "final", "taken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One round of one candidate.

    Attributes:
        seconds: For each workload, seconds for a token of its answers, prompts and all.
        texts: For each workload whose answers must be the same, what was answered.
    """

    seconds: Mapping[str, float]
    texts: Mapping[str, object] = field(default_factory=dict)


class Arena(Protocol):
    """Where candidates are tried."""

    def calibrate(self, round_s: float) -> float:
        """Have the default take about ``round_s`` for a round from now on; returns what it took.

        Raises:
            LLMError: The default does not work.
        """
        ...

    def fingerprint(
        self, candidate: Candidate, reference: Fingerprint | None = None
    ) -> Fingerprint:
        """What the candidate answers, up to where that differs from the reference.

        Raises:
            LLMError: It cannot be started, or gives no answer.
        """
        ...

    def measure(self, candidate: Candidate, number: int) -> Measured:
        """The work of round ``number``.

        Raises:
            LLMError: It failed.
        """
        ...

    def drop(self, candidate: Candidate) -> None:
        """It is not needed any longer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a candidate stands.

    Attributes:
        candidate: Which one.
        state: ``refused`` for other answers or a failure, ``out`` for being slower, ``final`` for
            those that were measured to the end.
        gain: Its speed against the default's: 0.1 is 10 % more in the same time.
        rounds: Rounds it rests on.
        note: Why it is where it is.
    """

    candidate: Candidate
    state: State = "waiting"
    gain: float | None = None
    rounds: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One moment of a search."""

    stage: Stage
    elapsed_s: float
    budget_s: float
    at: str
    standings: tuple[Standing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a search came to.

    Attributes:
        taken: What is used from now on; the default when nothing better was found.
        summary: What was found and how sure that is, one sentence.
        standings: Everything that was tried.
        estimates: Of what was measured to the end: the gain over the default and its interval.
        by_workload: The same candidates' gains for each workload alone, medians.
        elapsed_s: How long it took.
    """

    taken: Candidate
    summary: str
    standings: tuple[Standing, ...]
    estimates: Mapping[str, Estimate]
    by_workload: Mapping[str, Mapping[str, float]]
    elapsed_s: float


def summary(
    taken: Candidate, estimates: Mapping[str, Estimate], standings: Mapping[str, Standing]
) -> str:
    """What was found and how sure that is, one sentence."""
    if taken is not DEFAULT:
        found = estimates[taken.name]
        if judge(found) is Verdict.FASTER:
            return f"{taken.name}: {_percent(found.gain)} faster than the defaults, {_sure(found)}"
        return f"{taken.name}, as before: nothing says otherwise ({_told(found)})"
    if not estimates:
        refused = sum(each.state == "refused" for each in standings.values())
        return f"the defaults: all else is slower or, {refused} of {len(standings)}, was refused"
    name, best = max(estimates.items(), key=lambda pair: pair[1].gain)
    if judge(best) is Verdict.OPEN:
        return (
            f"the defaults: no certain difference within the time ({name}: {_told(best)}); "
            "more minutes would tell"
        )
    return (
        f"the defaults: nothing else is {_percent(MIN_GAIN)} faster (the next is {name}: "
        f"{_told(best)})"
    )


def _told(found: Estimate) -> str:
    if found.rounds < rounds_needed(found.confidence):
        return f"{found.gain:+.0%}, of {found.rounds} rounds only"
    return f"{found.gain:+.0%}, {_sure(found)}"


def _sure(found: Estimate) -> str:
    return (
        f"{found.confidence:.0%} sure of {found.low:+.0%} to {found.high:+.0%} after "
        f"{found.rounds} rounds"
    )


def _percent(gain: float) -> str:
    return f"{gain:.0%}"
