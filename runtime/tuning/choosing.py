"""Which of several settings is faster, decided so that noise does not choose.

Settings are measured in rounds: in each round every one of them does the same work, one after the
other. What is compared is always two results of the same round, as the logarithm of their ratio, so
that a machine that grows slower or hot strikes both. The estimate is Hodges and Lehmann's (the
median of the means of all pairs of rounds) and its interval the one that belongs to Wilcoxon's
signed rank test: neither minds that a busy spell made some rounds useless, and neither assumes
anything about how the noise is distributed but that it strikes both sides alike.

Source: Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd ed., chapter 3.
"""

from __future__ import annotations

import enum
import functools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIDENCE: Final = 0.99
"""How sure each judgement is. More than one look is taken at growing evidence, hence not 0.95."""

MIN_GAIN: Final = 0.03
"""What is not faster by this is not worth leaving the default for."""

HOPELESS_GAIN: Final = -0.05
"""What seems slower than this after a few rounds is not measured any further."""


class Verdict(enum.Enum):
    """What the measurements of one setting against another allow to say."""

    FASTER = "faster"
    SAME = "no difference worth having"
    SLOWER = "slower"
    OPEN = "not certain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How much faster one setting is than another: 0.1 is 10 % more work in the same time.

    Attributes:
        gain: The estimate.
        low: The least that is plausible; minus infinity when there is too little evidence.
        high: The most that is plausible.
        rounds: Measurements it rests on.
        confidence: How sure it is that the truth lies between ``low`` and ``high``.
    """

    gain: float
    low: float
    high: float
    rounds: int
    confidence: float


def log_gain(
    reference_s: Mapping[str, float],
    candidate_s: Mapping[str, float],
    weights: Mapping[str, float],
) -> float:
    """The weighted mean, over the workloads of one round, of the logarithm of the speed-up.

    Args:
        reference_s: Seconds that the reference took for each workload.
        candidate_s: Seconds that the candidate took.
        weights: How much each workload counts; those that are missing or 0 do not count.
    """
    total = sum(weights.get(name, 0.0) for name in reference_s)
    return (
        sum(
            weights.get(name, 0.0) * math.log(reference_s[name] / candidate_s[name])
            for name in reference_s
        )
        / total
    )


def estimate(log_gains: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """What the gains of several rounds, as logarithms, say together.

    Raises:
        ValueError: There is no round.
    """
    if not log_gains:
        raise ValueError("no round was measured")
    count = len(log_gains)
    means = sorted((log_gains[i] + log_gains[j]) / 2 for i in range(count) for j in range(i, count))
    outside = _outside(count, confidence)
    return Estimate(
        gain=math.expm1(statistics.median(means)),
        low=-math.inf if outside is None else math.expm1(means[outside]),
        high=math.inf if outside is None else math.expm1(means[-1 - outside]),
        rounds=count,
        confidence=confidence,
    )


def judge(found: Estimate) -> Verdict:
    """What an estimate allows to say about a candidate against its reference."""
    if found.low > 0 and found.gain >= MIN_GAIN:
        return Verdict.FASTER
    if found.high < 0:
        return Verdict.SLOWER
    if found.high < MIN_GAIN:
        return Verdict.SAME
    return Verdict.OPEN


def decided(found: Estimate) -> bool:
    """Whether further rounds could not change what is done."""
    return judge(found) is not Verdict.OPEN


def rounds_needed(confidence: float = CONFIDENCE) -> int:
    """The fewest rounds that can be this sure of anything."""
    return next(n for n in range(1, 64) if _outside(n, confidence) is not None)


def survivors(screened: Mapping[str, Sequence[float]], *, keep: int) -> tuple[str, ...]:
    """Who is worth further rounds: the better ones, and none that seems hopeless.

    Args:
        screened: Logarithms of the gains against the default, by name, the simplest name first.
        keep: So many at most.
    """
    typical = {name: statistics.median(gains) for name, gains in screened.items() if gains}
    hopeful = [name for name, gain in typical.items() if gain > math.log1p(HOPELESS_GAIN)]
    best = sorted(hopeful, key=lambda name: -typical[name])[:keep]
    return tuple(name for name in hopeful if name in best)


def simplest_of_the_best(screened: Mapping[str, Sequence[float]]) -> str | None:
    """The first name whose gain is not worth less than the best one's; None when none gains.

    A name that stands further ahead is the simpler one and wins what is as good as a tie, so that
    tuning again does not choose anew among equals.

    Args:
        screened: Logarithms of the gains against the default, by name, the simplest name first.
    """
    typical = {name: statistics.median(gains) for name, gains in screened.items() if gains}
    enough = {name: gain for name, gain in typical.items() if gain > math.log1p(MIN_GAIN) / 2}
    if not enough:
        return None
    best = max(enough.values())
    return next(name for name, gain in enough.items() if gain >= best - math.log1p(MIN_GAIN))


def order_of(round_number: int, names: Sequence[str]) -> tuple[str, ...]:
    """The order of a round: another one starts each time, and every second round runs backwards.

    A drift within rounds then strikes each as much as any other.
    """
    if not names:
        return ()
    first = (round_number // 2) % len(names)
    turned = (*names[first:], *names[:first])
    return turned[::-1] if round_number % 2 else turned


@functools.cache
def _outside(count: int, confidence: float) -> int | None:
    """How many means of pairs lie outside the interval on each side; None if it cannot be so sure.

    The statistic of Wilcoxon's test takes each value as often as there are subsets of 1 … count
    with that sum.
    """
    ways = [1]
    for rank in range(1, count + 1):
        grown = ways + [0] * rank
        for total, number in enumerate(ways):
            grown[total + rank] += number
        ways = grown
    tail, each_side = 0, (1 - confidence) / 2 * 2**count
    outside = 0
    for number in ways:
        tail += number
        if tail > each_side:
            break
        outside += 1
    return outside - 1 if outside else None
