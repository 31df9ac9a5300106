"""What a search for faster settings is about: where candidates are tried, and how they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

from runtime.tuning.candidates import DEFAULT
from runtime.tuning.choosing import MIN_GAIN, Estimate, Verdict, judge, rounds_needed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.tuning.candidates import Candidate
    from runtime.tuning.sameness import Fingerprint

Stage = Literal["comparing answers", "screening", "deciding", "done"]
State = Literal["waiting", "in", "refused", "out", "final", "taken"]

NOT_TRIED: Final = "not tried: the time was short"


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
        equal_to: Another one that went on in its place, though no slower than it for certain.
    """

    candidate: Candidate
    state: State = "waiting"
    gain: float | None = None
    rounds: int = 0
    note: str = ""
    equal_to: str | None = None


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
    taken: Candidate,
    estimates: Mapping[str, Estimate],
    standings: Mapping[str, Standing],
    *,
    kept: Candidate | None = None,
    equals: Sequence[str] = (),
) -> str:
    """What was found and how sure that is, one sentence.

    Args:
        taken: What is used from now on.
        estimates: Of what was measured to the end.
        standings: Everything that was tried, by name.
        kept: What was taken the last time.
        equals: What cannot be told from what was taken.
    """
    told = _found(taken, estimates, standings)
    if equals:
        told += f"; no certain difference to {', '.join(equals)}"
    if kept is None or kept.settings == taken.settings:
        return told
    before = next((s for s in standings.values() if s.candidate.settings == kept.settings), None)
    if before is None:
        return f"{told}; before it was {kept.name}"
    found = estimates.get(before.candidate.name)
    now = _told(found) if found else before.note
    return f"{told}; before it was {before.candidate.name} (now {now})"


def _found(
    taken: Candidate, estimates: Mapping[str, Estimate], standings: Mapping[str, Standing]
) -> str:
    if taken is not DEFAULT:
        found = estimates[taken.name]
        if judge(found) is Verdict.FASTER:
            return f"{taken.name}: {_percent(found.gain)} faster than the defaults, {_sure(found)}"
        return f"{taken.name}, as before: nothing says otherwise ({_told(found)})"
    if not standings:
        return "the defaults: all else might change some answers"
    if not estimates:
        return f"the defaults: {_left(standings)}"
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


def _left(standings: Mapping[str, Standing]) -> str:
    """What became of candidates none of which was measured to the end."""
    refused = sum(each.state == "refused" for each in standings.values())
    untried = sum(each.note == NOT_TRIED for each in standings.values())
    slower = len(standings) - refused - untried
    counts = ((slower, "slower"), (refused, "refused"), (untried, "not tried for want of minutes"))
    told = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"all else was no better ({told})"


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
